// What the driver and the runtime of the GPU that is not there share: its memory, and what a graph holds.
#pragma once
#include <cstddef>
#include <functional>

extern "C" {
void* fake_cuda_allocate(size_t size);  // null where there is no room
void fake_cuda_release(void* data);
void fake_cuda_open();  // until it is closed as often, the processor may touch the memory
void fake_cuda_close();
}
// Where `stream` is being captured, `work` is put into its graph (1), else left to the caller (0), or
// refused (-1): another stream is.
int fake_cuda_capture(void* stream, std::function<int()> work);
struct Opened {
  Opened() { fake_cuda_open(); }
  ~Opened() { fake_cuda_close(); }
};
