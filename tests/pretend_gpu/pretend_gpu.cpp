// Two pretend CUDA devices for a PyTorch that was built without CUDA.
//
// Their memory is the host's, and each operation runs on the CPU as soon as it is asked for. What is
// real is everything that a program can get wrong before the device comes in: tensors of
// different devices do not mix, autograd runs backwards on a thread per device, streams and
// generators are a device's own, a thread has a current device and stream, and bytes in use are counted per device. What a
// real GPU's host would have to wait for is noted by name (`host_waits`).
//
// Importing the Python module beside this file compiles and loads it.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Stream;

constexpr auto kGpu = c10::DeviceType::CUDA;
constexpr DeviceIndex kNumDevices = 2;

thread_local DeviceIndex current_device = 0;
thread_local std::array<c10::StreamId, kNumDevices> current_streams{};
std::atomic<c10::StreamId> num_streams{1};

// ---- what the host would have waited for

std::mutex waits_lock;
std::vector<std::pair<int64_t, std::string>> waits; // the thread, and for what

void wait_for(const std::string& what) {
  std::lock_guard<std::mutex> held(waits_lock);
  waits.emplace_back(gettid(), what);
}

// ---- memory

std::array<std::atomic<int64_t>, kNumDevices> bytes_live{};
std::array<std::atomic<int64_t>, kNumDevices> bytes_peak{};

struct Piece {
  void* data;
  int64_t size;
  DeviceIndex device;
};

void free_piece(void* context) {
  auto* piece = static_cast<Piece*>(context);
  bytes_live[piece->device] -= piece->size;
  std::free(piece->data);
  delete piece;
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    const auto device = current_device;
    void* data = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
    auto* piece = new Piece{data, static_cast<int64_t>(size), device};
    const auto live = bytes_live[device] += piece->size;
    auto peak = bytes_peak[device].load();
    while (peak < live && !bytes_peak[device].compare_exchange_weak(peak, live)) {
    }
    return {data, piece, free_piece, Device(kGpu, device)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* target, const void* source, size_t size) const override {
    default_copy_data(target, source, size);
  }
};

DeviceAllocator device_allocator;

std::mutex pinned_lock;
std::set<const void*> pinned;

void free_pinned(void* data) {
  std::lock_guard<std::mutex> held(pinned_lock);
  pinned.erase(data);
  std::free(data);
}

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> held(pinned_lock);
  const auto next = pinned.upper_bound(data);
  return next != pinned.begin() && *std::prev(next) == data;
}

struct PinnedAllocator final : at::HostAllocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = std::aligned_alloc(64, (size + 64) / 64 * 64);
    std::lock_guard<std::mutex> held(pinned_lock);
    pinned.insert(data);
    return {data, data, free_pinned, Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return free_pinned;
  }
  void copy_data(void* target, const void* source, size_t size) const override {
    default_copy_data(target, source, size);
  }
  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override {
    return {};
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

PinnedAllocator pinned_allocator;

// ---- random numbers

struct DeviceGenerator final : at::CPUGeneratorImpl {
  explicit DeviceGenerator(DeviceIndex device) {
    device_ = Device(kGpu, device < 0 ? current_device : device);
    key_set_ = DispatchKeySet(DispatchKey::CUDA);
  }
};

at::Generator& default_generator(DeviceIndex device) {
  static std::array<at::Generator, kNumDevices> made{
      at::make_generator<DeviceGenerator>(0), at::make_generator<DeviceGenerator>(1)};
  return made[device < 0 ? current_device : device];
}

// ---- streams, events, devices

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kGpu;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override {
    return kGpu;
  }
  Device exchangeDevice(Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override {
    return Device(kGpu, current_device);
  }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < kNumDevices, "there is no device ", device);
    if (device.index() >= 0)
      current_device = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0)
      current_device = device.index();
  }
  Stream getStream(Device device) const override {
    const auto index = device.index() < 0 ? current_device : device.index();
    return Stream(Stream::UNSAFE, Device(kGpu, index), current_streams[index]);
  }
  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::DEFAULT, Device(kGpu, device.index() < 0 ? current_device : device.index()));
  }
  Stream getNewStream(Device device, int = 0) const override {
    const auto index = device.index() < 0 ? current_device : device.index();
    return Stream(Stream::UNSAFE, Device(kGpu, index), num_streams++);
  }
  Stream getStreamFromGlobalPool(Device device, bool = false) const override {
    return getNewStream(device);
  }
  Stream exchangeStream(Stream stream) const override {
    const auto before = getStream(stream.device());
    current_streams[stream.device_index()] = stream.id();
    return before;
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<int*>(event);
  }
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr)
      *event = new int(0);
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  DeviceIndex deviceCount() const noexcept override {
    return kNumDevices;
  }
  bool queryStream(const Stream&) const override {
    return true;
  }
  void synchronizeStream(const Stream&) const override {
    wait_for("stream");
  }
  void synchronizeEvent(void*) const override {
    wait_for("event");
  }
  void synchronizeDevice(const DeviceIndex) const override {
    wait_for("device");
  }
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
  double elapsedTime(void*, void*, const DeviceIndex) const override {
    return 0;
  }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override {
    return true;
  }
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }
  DeviceIndex current_device() const override {
    return ::current_device;
  }
  DeviceIndex deviceCount() const override {
    return kNumDevices;
  }
  int getNumGPUs() const override {
    return kNumDevices;
  }
  void setCurrentDevice(DeviceIndex device) const override {
    Guard().setDevice(Device(kGpu, device));
  }
  DeviceIndex getCurrentDevice() const override {
    return ::current_device;
  }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    return Guard().exchangeDevice(Device(kGpu, device)).index();
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return exchangeDevice(device);
  }
  void deviceSynchronize(DeviceIndex) const override {
    wait_for("device");
  }
  bool isPinnedPtr(const void* data) const override {
    return is_pinned(data);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_allocator;
  }
  at::Allocator* getCUDADeviceAllocator() const override {
    return &device_allocator;
  }
  const at::Generator& getDefaultGenerator(DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(DeviceIndex device) const override {
    return at::make_generator<DeviceGenerator>(device);
  }
};

} // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
} // namespace at

namespace {

[[maybe_unused]] const bool registered = [] {
  c10::SetAllocator(kGpu, &device_allocator);
  at::setHostAllocator(kGpu, &pinned_allocator);
  return true;
}();

// ---- operations

Tensor on_host(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kGpu)
    return tensor;
  return at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(c10::kCPU).requires_grad(false));
}

Tensor on_device(const Tensor& tensor, DeviceIndex device) {
  const c10::DeviceGuard guard(Device(kGpu, device));
  auto made = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(Device(kGpu, device)));
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

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  static const std::set<std::string> told_to_host{
      "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_consecutive",
      "aten::unique_dim", "aten::repeat_interleave"};
  const auto& schema = op.schema();
  if (told_to_host.count(schema.name()))
    wait_for(schema.name());
  const auto num_arguments = schema.arguments().size();
  const auto begin = stack->size() - num_arguments;
  std::vector<IValue> given(stack->begin() + begin, stack->end());
  DeviceIndex device = -1;
  std::vector<std::pair<Tensor, Tensor>> outs; // the device's, the host's
  const auto taken = [&](const Tensor& tensor, bool is_out = false) {
    if (!tensor.defined() || tensor.device().type() != kGpu) {
      TORCH_CHECK(
          !tensor.defined() || tensor.dim() == 0 || schema.name() == "aten::index" || schema.name() == "aten::index_put_" || schema.name() == "aten::_index_put_impl_",
          schema.name(), ": Expected all tensors to be on the same device, but found one on ", tensor.device());
      return tensor;
    }
    TORCH_CHECK(
        device < 0 || device == tensor.device().index() || tensor.dim() == 0,
        schema.name(), ": Expected all tensors to be on the same device, but found cuda:", int(device), " and ", tensor.device());
    device = tensor.device().index();
    auto host = on_host(tensor);
    if (is_out) { // it may be given another size, which memory of others cannot have
      host = at::empty({0}, host.options());
      outs.emplace_back(tensor, host);
    }
    return host;
  };
  std::optional<at::Generator> generator;
  for (size_t i = 0; i < num_arguments; ++i) {
    auto& value = (*stack)[begin + i];
    if (value.isTensor()) {
      value = taken(value.toTensor(), schema.arguments()[i].is_out());
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
    } else if (value.isDevice()) {
      if (value.toDevice().type() == kGpu) {
        device = value.toDevice().has_index() ? value.toDevice().index() : current_device;
        value = Device(c10::kCPU);
      }
    } else if (value.isGenerator()) {
      generator = value.toGenerator();
      value = IValue();
    }
  }
  if (device < 0)
    device = current_device;
  const bool draws = generator.has_value() || op.hasTag(at::Tag::nondeterministic_seeded);
  {
    std::optional<Drawing> drawing;
    if (draws)
      drawing.emplace(generator.value_or(default_generator(device)), drawing_lock);
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  }
  for (auto& [own, host] : outs) {
    if (own.sizes() != host.sizes())
      own.resize_(host.sizes());
    on_host(own).copy_(host);
  }
  const auto num_returns = schema.returns().size();
  const auto first = stack->size() - num_returns;
  for (size_t i = 0; i < num_returns; ++i) {
    auto& value = (*stack)[first + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (alias != nullptr) {
      TORCH_CHECK(alias->isWrite(), schema.name(), " is a view that pretend devices do not know");
      for (size_t k = 0; k < num_arguments; ++k) {
        const auto* one = schema.arguments()[k].alias_info();
        if (one != nullptr && one->beforeSets() == alias->beforeSets())
          value = given[k];
      }
    } else if (value.isTensor() && value.toTensor().defined()) {
      value = on_device(value.toTensor(), device);
    } else if (value.isTensorList()) {
      std::vector<Tensor> moved;
      for (const auto& one : value.toTensorVector())
        moved.push_back(on_device(one, device));
      value = moved;
    }
  }
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
      size, &device_allocator, DispatchKeySet(DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
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
      size, strides, &device_allocator, DispatchKeySet(DispatchKey::CUDA), c10::dtype_or_default(dtype));
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

const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
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

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef strides) {
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
  m.impl("as_strided", [](const Tensor& self, at::IntArrayRef size, at::IntArrayRef strides, std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(self, size, strides, offset);
  });
  m.impl("_reshape_alias", [](const Tensor& self, at::IntArrayRef size, at::IntArrayRef strides) {
    return at::native::_reshape_alias(self, size, strides);
  });
  m.impl("view", [](const Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); });
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
  m.def("default_generator(int device) -> Generator?", [](int64_t device) { return default_generator(device); });
}

} // namespace
