// Memory, random numbers, streams and hooks of the pretend devices; see pretend_gpu.cpp.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

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
    const auto index = device.index() < 0 ? current_device : device.index();
    return Stream(Stream::DEFAULT, Device(kGpu, index));
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

} // namespace
