// As much of tvm/ffi/function.h as generated host code uses; the whole takes g++ two seconds.
#pragma once
#include <tvm/ffi/c_api.h>

#include <exception>

#define TVM_FFI_SAFE_CALL_BEGIN() try { (void)0
#define TVM_FFI_SAFE_CALL_END()                                 \
  return 0;                                                     \
  }                                                             \
  catch (const std::exception& error) {                         \
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", error.what()); \
    return -1;                                                  \
  }
