#include "base/logging.h"

#include "spdlog/sinks/stdout_color_sinks.h"

namespace zp::base {

void SetUpLogging() {
  auto logger = spdlog::stderr_color_mt("zeroprefill");
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(logger);
}

void SetLogLevel(const std::string& level) { spdlog::set_level(spdlog::level::from_str(level)); }

}  // namespace zp::base
