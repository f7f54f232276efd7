#include "base/logging.h"

#include "spdlog/sinks/stdout_color_sinks.h"

namespace zp::base {

void SetUpLogging(const char* level) {
  auto logger = spdlog::stderr_color_mt("zeroprefill");
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  logger->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(logger);
}

}  // namespace zp::base
