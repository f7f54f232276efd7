#include "apps/local_model.h"

#include <chrono>
#include <filesystem>
#include <utility>

#include "apps/command.h"
#include "base/logging.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "spec/flops.h"

namespace zp::apps {
namespace {

std::string NameOf(const LocalModelOptions& options) {
  if (!options.served_model_name.empty()) {
    return options.served_model_name;
  }
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(options.directory, error);
  return error ? options.directory : path.filename().string();
}

}  // namespace

void AddLocalModelFlags(CLI::App& command, LocalModelOptions& options) {
  command.add_option("--model", options.directory, "Hugging Face model directory")->required();
  command.add_option("--served-model-name",
                     options.served_model_name,
                     "The name that requests use (default: the directory's)");
  command.add_option("--dtype", options.dtype, "Activations: bf16 or f32")->capture_default_str();
  command.add_option("--threads", options.threads, "Compute threads; 0 is one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command
      .add_option("--max-batch-tokens",
                  options.scheduler.max_batch_tokens,
                  "Distinct tokens of one forward pass; larger requests take several")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--max-sequence-tokens",
                  options.scheduler.max_sequence_tokens,
                  "Tokens of one prompt with its label; above a pass it runs alone")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

absl::StatusOr<std::unique_ptr<LocalModel>> LocalModel::Load(const LocalModelOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  ZP_ASSIGN_OR_RETURN(const spec::DType dtype, ParseDType(options.dtype));
  auto model = std::unique_ptr<LocalModel>(new LocalModel());
  ZP_ASSIGN_OR_RETURN(model->tokenizer_,
                      text::Tokenizer::Load(options.directory + "/tokenizer.json"));
  {
    ZP_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> checkpoint,
                        checkpoint::Checkpoint::Open(options.directory));
    ZP_ASSIGN_OR_RETURN(
        std::shared_ptr<const engine::HostModel> host_model,
        engine::HostModel::Load(*checkpoint,
                                {.activation_dtype = dtype, .thread_count = options.threads}));
    ZP_ASSIGN_OR_RETURN(
        model->engine_,
        engine::Engine::Create(std::move(host_model), {.thread_count = options.threads}));
  }
  const spec::ModelSpec& spec = model->engine_->spec();
  ZP_ASSIGN_OR_RETURN(
      gateway::ServedModel served_model,
      gateway::ServedModel::Load(options.directory, NameOf(options), *model->tokenizer_, spec));
  model->served_model_ = std::make_unique<gateway::ServedModel>(std::move(served_model));
  model->scheduler_ = std::make_unique<scheduler::Scheduler>(*model->engine_, options.scheduler);
  model->service_ = std::make_unique<gateway::Service>(
      *model->served_model_, *model->scheduler_, gateway::ServiceOptions{});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  base::log::info("loaded {} in {:.1f} s: {}, {} parameters, {} active, {} kernels",
                  model->served_model_->name(),
                  seconds.count(),
                  spec.family,
                  base::FormatCount(static_cast<double>(spec::TotalParameters(spec))),
                  base::FormatCount(static_cast<double>(spec::ActiveParameters(spec))),
                  model->engine_->kernels_name());
  return model;
}

}  // namespace zp::apps
