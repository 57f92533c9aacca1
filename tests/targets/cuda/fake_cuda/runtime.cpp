// libcudart.so.13 for a machine without a GPU: everything happens at once but what is captured, which
// happens when the graph is launched; events hold the time. FAKE_CUDA_MEMORY: bytes after which the
// device's memory is full; FAKE_CUDA_L2: those of its second cache.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "device_memory.h"

using Clock = std::chrono::steady_clock;
extern "C" {  // of libcuda.so.1
void fake_cuda_begin_capture(void*);
void* fake_cuda_end_capture();
int fake_cuda_replay(void*);
int fake_cuda_spoiled();
}
static size_t used;
static int alive;  // streams and events
static std::unordered_map<void*, size_t> sizes;

static cudaError_t state() { return cudaError_t(fake_cuda_spoiled()); }

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetLastError() { return state(); }
cudaError_t cudaPeekAtLastError() { return state(); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
cudaError_t cudaMalloc(void** data, size_t size) {
  if (state()) return state();
  const char* limit = getenv("FAKE_CUDA_MEMORY");
  if (limit && used + size > strtoull(limit, nullptr, 10)) return cudaErrorMemoryAllocation;
  if (!(*data = fake_cuda_allocate(size))) return cudaErrorMemoryAllocation;
  used += sizes[*data] = size;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  if (state()) return state();
  used -= sizes[data];
  return fake_cuda_release(data), cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t size) {
  return state() ? state() : (*data = malloc(size)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* data) { return free(data), state(); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return *free = *total = size_t(1) << 34, cudaSuccess;
}
static cudaError_t copy(void* to, const void* from, size_t size, cudaStream_t stream) {
  if (state()) return state();
  int is_captured = fake_cuda_capture(stream, [=] { return memmove(to, from, size), 0; });
  if (is_captured < 0) return cudaErrorStreamCaptureImplicit;
  if (is_captured) return cudaSuccess;
  Opened memory;
  return memmove(to, from, size), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t s) {
  return copy(to, from, size, s);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t s) {
  return copy(to, from, size, s);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const char* cache = getenv("FAKE_CUDA_L2");
  *value = which == cudaDevAttrL2CacheSize ? (cache ? atoi(cache) : 40 << 20) : 1;  // an A100's
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { return memset(p, 0, sizeof *p), cudaSuccess; }
int fake_cuda_alive() { return alive; }
cudaError_t cudaStreamCreate(cudaStream_t* s) {
  return alive++, *s = cudaStream_t(new char), cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return alive--, delete (char*)s, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return state(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return state(); }
cudaError_t cudaDeviceSynchronize() { return state(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream) return cudaErrorStreamCaptureUnsupported;  // as with a GPU
  return fake_cuda_begin_capture(stream), cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  return *graph = cudaGraph_t(fake_cuda_end_capture()), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
  return alive++, *e = cudaEvent_t(new Clock::time_point), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  return alive--, delete (Clock::time_point*)e, cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
  return *(Clock::time_point*)e = Clock::now(), cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return state(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return state(); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  std::chrono::duration<float, std::milli> passed = *(Clock::time_point*)to - *(Clock::time_point*)from;
  return *ms = passed.count(), cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  return *made = cudaGraphExec_t(graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  return cudaError_t(fake_cuda_replay(graph));
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
}
