#include "apps/score.h"

#include <limits>
#include <memory>
#include <utility>

#include "apps/command.h"
#include "apps/local_model.h"
#include "apps/progress.h"
#include "apps/score_file.h"
#include "base/metrics.h"
#include "base/units.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

struct ScoreOptions {
  LocalModelOptions model;
  ScoreFileOptions file;
};

ProgressCounts ToProgress(const ScoreFileCounts& counts) {
  return {.rows = counts.rows, .tokens = counts.asked_tokens, .done_share = counts.done_share};
}

// Computed tokens per distinct token of each pass: 1 is perfect.
double Redundancy() {
  const double distinct =
      base::GetCounter("zeroprefill_distinct_tokens_total", "Distinct tokens of each pass").Value();
  const double computed =
      base::GetCounter("zeroprefill_computed_tokens_total", "Tokens computed").Value();
  return distinct > 0 ? computed / distinct : 1;
}

void PrintSummary(const ScoreFileCounts& counts, double seconds) {
  const auto asked = static_cast<double>(counts.asked_tokens);
  const auto computed = static_cast<double>(counts.computed_tokens);
  fmt::print("{} rows, {} errors{} in {:.1f} s\n",
             counts.rows,
             counts.errors,
             counts.skipped > 0 ? fmt::format(", {} answered before", counts.skipped) : "",
             seconds);
  if (counts.asked_tokens == 0) {
    return;
  }
  fmt::print("{} tokens asked, {} computed ({:.1f} % shared), redundancy {:.3f}\n",
             counts.asked_tokens,
             counts.computed_tokens,
             100 * (1 - computed / asked),
             Redundancy());
  fmt::print("{:.1f} rows/s, {} tokens/s asked, {} tokens/s computed, {}FLOP/s\n",
             static_cast<double>(counts.rows) / seconds,
             base::FormatCount(asked / seconds),
             base::FormatCount(computed / seconds),
             base::FormatCount(counts.flops / seconds));
}

absl::Status Score(ScoreOptions options) {
  ZP_RETURN_IF_ERROR(CheckScoreFiles(options.file));  // before the minutes that loading may take
  // The window bounds what is in flight; nothing is to be refused.
  options.model.scheduler.max_queue_tokens = std::numeric_limits<int64_t>::max();
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LocalModel::Load(options.model));
  Progress progress("score");
  const gateway::Handler handler = [&model](gateway::Request request,
                                            std::stop_token cancel,
                                            std::function<void(gateway::Response)> done) {
    model->service().Handle(std::move(request), std::move(cancel), std::move(done));
  };
  ZP_ASSIGN_OR_RETURN(const ScoreFileCounts counts,
                      ScoreFile(options.file, handler, [&](const ScoreFileCounts& so_far) {
                        progress.Update(ToProgress(so_far));
                      }));
  progress.Finish(ToProgress(counts));
  PrintSummary(counts, progress.seconds());
  return absl::OkStatus();
}

}  // namespace

void AddScoreCommand(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  CLI::App* command = app.add_subcommand("score", "Answer the questions of a JSONL file");
  AddLocalModelFlags(*command, options->model);
  command
      ->add_option("input",
                   options->file.input_path,
                   "One question a line: an OpenAI batch line, a request body, {context, "
                   "continuation} or {prompt, labels}")
      ->required();
  command->add_option("output", options->file.output_path, "One answer a line, in order")
      ->required();
  CLI::Option* resume = command->add_flag(
      "--resume", options->file.resume, "Keep the answers in the output, add the missing ones");
  command->add_flag("--overwrite", options->file.overwrite, "Throw away what the output holds")
      ->excludes(resume);
  command->callback([options] { ExitOnError(Score(*options)); });
}

}  // namespace zp::apps
