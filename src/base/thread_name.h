// Names for threads, as `top -H` shows them.
#pragma once

#include <pthread.h>

namespace zp::base {

// At most 15 characters. Once a thread; false if the system does not take it.
inline bool NameThisThread(const char* name) {
  return pthread_setname_np(pthread_self(), name) == 0;
}

}  // namespace zp::base
