#pragma once
namespace tvm {
namespace ffi {
struct CUDADeviceGuard {
  explicit CUDADeviceGuard(int) {}
};
}  // namespace ffi
}  // namespace tvm
