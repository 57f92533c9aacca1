// As much of tvm/ffi/function.h as generated host code uses; the whole takes g++ two seconds.
#pragma once
#include <tvm/ffi/c_api.h>

#include <stdexcept>

#define TVM_FFI_SAFE_CALL_BEGIN() try { (void)0
struct EmulatedFailure {
  EmulatedFailure& operator<<(const char* what) { throw std::runtime_error(what); }
};
#define TVM_FFI_CHECK(condition, kind) \
  if (!(condition)) EmulatedFailure {}
#define TVM_FFI_SAFE_CALL_END()                                 \
  return 0;                                                     \
  }                                                             \
  catch (const std::exception& error) {                         \
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", error.what()); \
    return -1;                                                  \
  }
