// CHECK for our own bugs: prints the condition, the place and the streamed values, then aborts.
//
// Input from outside never reaches a CHECK: that is what absl::Status is for.
#pragma once

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace zp::base {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    message_ << file << ":" << line << ": CHECK failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::cerr << message_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

}  // namespace zp::base

#define ZP_CHECK(condition)   \
  if (condition) [[likely]] { \
  } else                      \
    ::zp::base::CheckFailure(__FILE__, __LINE__, #condition).stream()

#ifdef NDEBUG
#define ZP_DCHECK(condition) ZP_CHECK(true || (condition))
#else
#define ZP_DCHECK(condition) ZP_CHECK(condition)
#endif
