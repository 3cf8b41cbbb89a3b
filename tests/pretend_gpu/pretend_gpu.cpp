// Two pretend CUDA devices for a PyTorch that was built without CUDA.
//
// Their memory is the host's, and each operation runs on the CPU as soon as it is asked for. What
// is real is what a program can get wrong before a device comes in: tensors of different devices
// do not mix, autograd runs backwards on a thread per device, generators are a device's own, a
// thread has a current device and stream, and bytes in use are counted per device. Where a real
// GPU's host would wait for the device is noted (`host_waits`): copies from and to memory that is
// not pinned, numbers that are read, events, streams and devices that are waited for, operations
// whose result's shape depends on values. What is not: streams and events order nothing, and a
// transfer is waited for where it is followed.

#include "pretend_device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

namespace {

// ---- operations

Tensor on_host(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kGpu)
    return tensor;
  return at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(),
      tensor.options().device(c10::kCPU).requires_grad(false));
}

Tensor on_device(const Tensor& tensor, DeviceIndex device) {
  const c10::DeviceGuard guard(Device(kGpu, device));
  const auto options = tensor.options().device(Device(kGpu, device));
  auto made = at::empty_strided(tensor.sizes(), tensor.strides(), options);
  on_host(made).copy_(tensor);
  return made;
}

// Draws come from the device's own generator, not from the host's.
struct Drawing {
  std::unique_lock<std::mutex> held;
  at::Generator own, host;
  Tensor before;
  Drawing(at::Generator generator, std::mutex& lock) : held(lock), own(std::move(generator)) {
    host = at::detail::getDefaultCPUGenerator();
    before = host.get_state();
    host.set_state(own.get_state());
  }
  ~Drawing() {
    own.set_state(host.get_state());
    host.set_state(before);
  }
};

std::mutex drawing_lock;

const std::set<std::string> shape_depends_on_values{
    "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_consecutive", "aten::unique_dim", "aten::repeat_interleave"};

const std::set<std::string> takes_indices_of_the_host{
    "aten::index", "aten::index_put_", "aten::_index_put_impl_"};

// An operation whose arguments are the devices', run on the host with the same memory.
class OnHost {
 public:
  OnHost(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack), count_(schema_.arguments().size()) {
    begin_ = stack->size() - count_;
    given_.assign(stack->begin() + begin_, stack->end());
  }

  void take_arguments() {
    for (size_t i = 0; i < count_; ++i)
      take(i, (*stack_)[begin_ + i]);
    if (device_ < 0)
      device_ = current_device;
  }

  void run() {
    std::optional<Drawing> drawing;
    if (generator_.has_value() || op_.hasTag(at::Tag::nondeterministic_seeded))
      drawing.emplace(generator_.value_or(default_generator(device_)), drawing_lock);
    op_.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack_);
  }

  void give_results() {
    for (auto& [own, host] : outs_) {
      if (own.sizes() != host.sizes())
        own.resize_(host.sizes());
      on_host(own).copy_(host);
    }
    const auto first = stack_->size() - schema_.returns().size();
    for (size_t i = 0; i < schema_.returns().size(); ++i)
      give(schema_.returns()[i].alias_info(), (*stack_)[first + i]);
  }

 private:
  void take(size_t index, IValue& value) {
    if (value.isTensor()) {
      value = taken(value.toTensor(), schema_.arguments()[index].is_out());
    } else if (value.isTensorList()) {
      std::vector<Tensor> moved;
      for (const auto& one : value.toTensorVector())
        moved.push_back(taken(one));
      value = moved;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> moved;
      for (const std::optional<Tensor>& one : value.toOptionalTensorVector())
        moved.push_back(one ? std::optional<Tensor>(taken(*one)) : std::nullopt);
      value = moved;
    } else if (value.isDevice() && value.toDevice().type() == kGpu) {
      device_ = value.toDevice().has_index() ? value.toDevice().index() : current_device;
      value = Device(c10::kCPU);
    } else if (value.isGenerator()) {
      generator_ = value.toGenerator();
      value = IValue();
    }
  }

  Tensor taken(const Tensor& tensor, bool is_out = false) {
    if (!tensor.defined())
      return tensor;
    const bool is_here = tensor.device().type() == kGpu;
    const bool may_be_elsewhere =
        tensor.dim() == 0 || (!is_here && takes_indices_of_the_host.count(schema_.name()));
    const bool is_alone = is_here && (device_ < 0 || device_ == tensor.device().index());
    TORCH_CHECK(
        is_alone || may_be_elsewhere, schema_.name(),
        ": Expected all tensors to be on the same device, but found one on ", tensor.device());
    if (!is_here)
      return tensor;
    device_ = tensor.device().index();
    auto host = on_host(tensor);
    if (is_out) { // it may be given another size, which memory of others cannot have
      host = at::empty({0}, host.options());
      outs_.emplace_back(tensor, host);
    }
    return host;
  }

  void give(const c10::AliasInfo* alias, IValue& value) {
    if (alias != nullptr) {
      TORCH_CHECK(alias->isWrite(), schema_.name(), ": a view that is not known here");
      for (size_t k = 0; k < count_; ++k) {
        const auto* one = schema_.arguments()[k].alias_info();
        if (one != nullptr && one->beforeSets() == alias->beforeSets())
          value = given_[k];
      }
    } else if (value.isTensor() && value.toTensor().defined()) {
      value = on_device(value.toTensor(), device_);
    } else if (value.isTensorList()) {
      std::vector<Tensor> moved;
      for (const auto& one : value.toTensorVector())
        moved.push_back(on_device(one, device_));
      value = moved;
    }
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t count_;
  size_t begin_ = 0;
  std::vector<IValue> given_;
  DeviceIndex device_ = -1;
  std::optional<at::Generator> generator_;
  std::vector<std::pair<Tensor, Tensor>> outs_; // the device's, the host's
};

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  if (shape_depends_on_values.count(op.schema().name()))
    wait_for(op.schema().name());
  OnHost one(op, stack);
  one.take_arguments();
  one.run();
  one.give_results();
}

Tensor empty(
    at::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<Device> device,
    std::optional<bool> pin,
    std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      size, &device_allocator, DispatchKeySet(DispatchKey::CUDA), c10::dtype_or_default(dtype),
      format);
}

Tensor empty_strided(
    at::IntArrayRef size,
    at::IntArrayRef strides,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<Device> device,
    std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      size, strides, &device_allocator, DispatchKeySet(DispatchKey::CUDA),
      c10::dtype_or_default(dtype));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  const bool leaves = self.is_cpu(), comes = source.is_cpu();
  if (leaves || comes) {
    const bool direct = non_blocking && (leaves ? self : source).is_pinned();
    if (!direct)
      wait_for(leaves ? "copy to host" : "copy to device");
  }
  on_host(self).copy_(on_host(source));
  return self;
}

at::Scalar local_scalar_dense(const Tensor& self) {
  wait_for("item");
  return at::_local_scalar_dense(on_host(self));
}

const Tensor& resize_(
    const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(self.device());
  int64_t num_bytes = self.element_size() * self.storage_offset();
  int64_t numel = 1;
  for (const auto dim : size)
    numel *= dim;
  num_bytes += numel * self.element_size();
  auto storage = self.storage();
  if (static_cast<int64_t>(storage.nbytes()) < num_bytes) {
    auto data = device_allocator.allocate(num_bytes);
    std::memcpy(data.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr(std::move(data));
    storage.set_nbytes(num_bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format)
    self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::native::set_tensor_(self, source);
}

Tensor& set_empty(Tensor& self) {
  const c10::DeviceGuard guard(self.device());
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), 0, device_allocator.allocate(0), &device_allocator, true);
  return at::native::set_storage_cpu_(self, storage, 0, {0}, {});
}

Tensor& set_storage(
    Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
    at::IntArrayRef strides) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, strides);
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  return at::native::set_(self, std::move(source));
}

void record_stream(Tensor&, Stream) {}

bool is_pinned_tensor(const Tensor&, std::optional<Device>) {
  return false;
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", [](const Tensor& self, at::IntArrayRef size, at::IntArrayRef strides) {
    return at::native::_reshape_alias(self, size, strides);
  });
  m.impl("view", at::native::view);
  m.impl("unfold", [](const Tensor& self, int64_t dim, int64_t size, int64_t step) {
    return at::native::unfold(self, dim, size, step);
  });
  m.impl("view_as_real", [](const Tensor& self) { return at::native::view_as_real(self); });
  m.impl("view_as_complex", [](const Tensor& self) { return at::native::view_as_complex(self); });
  m.impl("resize_", resize_);
  m.impl("set_", set_empty);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("record_stream", record_stream);
  m.impl("is_pinned", is_pinned_tensor);
}

// ---- what Python is told

std::vector<std::string> host_waits(int64_t thread) {
  std::lock_guard<std::mutex> held(waits_lock);
  std::vector<std::string> found;
  for (const auto& [waiting, what] : waits)
    if (thread == 0 || waiting == thread)
      found.push_back(what);
  waits.clear();
  return found;
}

TORCH_LIBRARY(pretend_gpu, m) {
  m.def("host_waits(int thread) -> str[]", [](int64_t thread) { return host_waits(thread); });
  m.def("bytes_live(int device) -> int", [](int64_t device) { return bytes_live[device].load(); });
  m.def("bytes_peak(int device, bool reset) -> int", [](int64_t device, bool reset) {
    const auto peak = bytes_peak[device].load();
    if (reset)
      bytes_peak[device] = bytes_live[device].load();
    return peak;
  });
  m.def("on_host(Tensor tensor) -> Tensor", [](const Tensor& tensor) { return on_host(tensor); });
  m.def("synchronize() -> ()", [] { wait_for("device"); });
  m.def("default_generator(int device) -> Generator?", [](int64_t device) {
    return default_generator(device);
  });
}

} // namespace
