#include "apps/synth.h"

#include <memory>
#include <optional>
#include <string>

#include "apps/command.h"
#include "apps/progress.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/synthetic.h"
#include "fmt/format.h"
#include "fmt/ranges.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

struct SynthOptions {
  std::string shape;
  std::string config_path;
  int32_t layer_count = 0;  // 0: as many as the shape has
  uint64_t seed = 1;
  bool fp8 = false;
  std::string directory;
};

absl::StatusOr<spec::ModelSpec> ReadShape(const SynthOptions& options) {
  ZP_ASSIGN_OR_RETURN(spec::ModelSpec spec,
                      options.config_path.empty() ? spec::FindModelShape(options.shape)
                                                  : checkpoint::ReadModelSpec(options.config_path));
  if (options.layer_count == 0) {
    return spec;
  }
  if (options.layer_count < 0 || options.layer_count > spec.layer_count) {
    return absl::InvalidArgumentError(fmt::format(
        "--layers is {}, but must be from 1 to {}", options.layer_count, spec.layer_count));
  }
  return spec::WithLayerCount(std::move(spec), options.layer_count);
}

absl::Status Synth(const SynthOptions& options) {
  ZP_ASSIGN_OR_RETURN(const spec::ModelSpec spec, ReadShape(options));
  Progress progress("synth");
  ProgressCounts counts;
  const auto report = [&](int64_t done_bytes, int64_t total_bytes) {
    counts.bytes = done_bytes;
    counts.done_share = static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
    progress.Update(counts);
  };
  ZP_RETURN_IF_ERROR(checkpoint::WriteSynthetic(
      spec,
      options.seed,
      options.directory,
      report,
      checkpoint::kDefaultShardBytes,
      options.fp8 ? std::optional(checkpoint::kPublishedFp8Blocks) : std::nullopt));
  progress.Finish(counts);
  fmt::print("{}: {} of random weights in {:.1f} s\n",
             options.directory,
             base::FormatBytes(counts.bytes),
             progress.seconds());
  return absl::OkStatus();
}

}  // namespace

void AddSynthCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("synth", "Write a random checkpoint in the Hugging Face format");
  auto options = std::make_shared<SynthOptions>();
  CLI::Option_group* shape = command->add_option_group("shape");
  shape->add_option("--shape",
                    options->shape,
                    fmt::format("A published shape: {}", fmt::join(spec::ModelShapeNames(), ", ")));
  shape->add_option("--config", options->config_path, "A config.json with the shape");
  shape->require_option(1);
  command->add_option("--layers", options->layer_count, "Only this many layers");
  command->add_option("--seed", options->seed, "Other seeds give other weights")
      ->capture_default_str();
  command->add_flag("--fp8",
                    options->fp8,
                    "The layers' matrices, but routers, as 8-bit numbers with a scale for each "
                    "block of 128 x 128");
  command->add_option("directory", options->directory, "The folder to write")->required();
  command->callback([options] { ExitOnError(Synth(*options)); });
}

}  // namespace zp::apps
