// libcuda.so.1 for a machine without a GPU: as much of the driver's API as TVM's runtime and ours
// call. A module's code is the path of a library of emulated kernels. What the driver is to be like
// is in the environment: FAKE_CUDA_INIT (what cuInit returns), _CAPABILITY ("8.0"), _RELEASE.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "device_memory.h"
#include "tensor_map.h"

struct Function {
  int (*launch)(const unsigned*, size_t, void**);
  const size_t* sizes;  // of the arguments; 0 ends them
  size_t shared = 48 << 10;  // dynamic, until more is asked for
};
using Graph = std::vector<std::function<int()>>;
static Graph* captured;  // what is being captured,
static void* capturing;  // in which stream
static int spoiled;      // by which error: as with a GPU, nothing works after it

int fake_cuda_capture(void* stream, std::function<int()> work) {
  if (!captured) return 0;
  if (stream != capturing) return -1;  // as with a GPU
  return captured->push_back(std::move(work)), 1;
}
static int number(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

extern "C" {
CUresult cuInit(unsigned) { return CUresult(number("FAKE_CUDA_INIT", 0)); }
CUresult cuDeviceGetCount(int* count) { return *count = number("FAKE_CUDA_COUNT", 1), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) {
  return *version = number("FAKE_CUDA_RELEASE", 13000), CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  return snprintf(name, length, "Emulated GPU"), CUDA_SUCCESS;
}
static void capability(int& major, int& minor) {
  const char* text = getenv("FAKE_CUDA_CAPABILITY");
  major = 8, minor = 0;
  if (text) sscanf(text, "%d.%d", &major, &minor);
}
static int most_shared() {  // of a block; CUDA C++ Programming Guide, technical specifications
  int major, minor;
  capability(major, minor);
  if (major == 9 || major == 10) return 227 << 10;
  return (major == 8 && minor == 0 ? 163 : 99) << 10;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  int major, minor;
  capability(major, minor);
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? major : minor;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
  static char text[64];
  snprintf(text, sizeof text, "CUDA_ERROR_%d", int(error));
  return *name = text, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  void* library = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), CUDA_ERROR_INVALID_IMAGE;
  return *module = CUmodule(library), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUresult(spoiled); }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  char symbol[512];
  snprintf(symbol, sizeof symbol, "launch_%s", name);
  void* launch = dlsym((void*)module, symbol);
  if (!launch) return CUDA_ERROR_NOT_FOUND;
  snprintf(symbol, sizeof symbol, "sizes_%s", name);
  auto sizes = (const size_t* (*)())dlsym((void*)module, symbol);
  *function = CUfunction(new Function{(int (*)(const unsigned*, size_t, void**))launch, sizes()});
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute which, int value) {
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value > most_shared()) return CUDA_ERROR_INVALID_VALUE;
  return ((Function*)f)->shared = value, CUDA_SUCCESS;
}
static bool is_taken(const unsigned* s, size_t shared, const Function* f) {  // as by any GPU
  bool has_threads = s[3] && s[4] && s[5] && size_t(s[3]) * s[4] * s[5] <= 1024 && s[5] <= 64;
  bool has_blocks = s[0] && s[1] && s[2] && s[0] < 1u << 31 && s[1] < 1 << 16 && s[2] < 1 << 16;
  return has_threads && has_blocks && shared <= f->shared;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** arguments, void**) {
  unsigned sizes[] = {c->gridDimX,  c->gridDimY,  c->gridDimZ,
                      c->blockDimX, c->blockDimY, c->blockDimZ};
  if (number("FAKE_CUDA_LAUNCH", 0) < 0) abort();  // a driver that takes its process along
  if (!spoiled) spoiled = number("FAKE_CUDA_LAUNCH", 0);
  if (spoiled) return CUresult(spoiled);
  auto function = (Function*)f;
  size_t shared = c->sharedMemBytes;
  if (!is_taken(sizes, shared, function)) return CUDA_ERROR_INVALID_VALUE;
  std::vector<std::vector<char>> held;
  for (const size_t* size = function->sizes; *size; size++, arguments++)
    held.emplace_back((char*)*arguments, (char*)*arguments + *size);
  auto launch = [=, blocks = std::vector<unsigned>(sizes, sizes + 6)]() mutable {
    std::vector<void*> given;
    for (auto& bytes : held) given.push_back(bytes.data());
    return function->launch(blocks.data(), shared, given.data());
  };
  int is_captured = fake_cuda_capture(c->hStream, launch);
  if (is_captured < 0) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  if (is_captured) return CUDA_SUCCESS;
  Opened memory;
  if (launch()) spoiled = CUDA_ERROR_LAUNCH_FAILED;
  return CUresult(spoiled);
}
void fake_cuda_begin_capture(void* stream) {
  captured = new Graph;
  capturing = stream;
}
void* fake_cuda_end_capture() {
  void* graph = captured;
  captured = nullptr;
  return graph;
}
int fake_cuda_replay(void* graph) {
  Opened memory;
  for (auto& work : *(Graph*)graph)
    if (work()) spoiled = CUDA_ERROR_LAUNCH_FAILED;
  return spoiled;
}
int fake_cuda_spoiled() { return spoiled; }
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* base, const cuuint64_t* dims, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  static_assert(sizeof(CUtensorMap) == 128);
  auto held = (EmulatedTensorMap*)map;
  bool is_taken = encode_tensor_map(held, type, rank, base, dims, strides, box, swizzle);
  return is_taken ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
}
