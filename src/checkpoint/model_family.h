// What this program knows of a model family: how to read its config.json and what it calls its
// tensors. Each family has one small file; FindFamily is the list of them.
//
// Thread safety: immutable.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "boost/json/object.hpp"
#include "checkpoint/json_file.h"
#include "checkpoint/tensor_table.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

// Where a tensor's numbers lie: a tensor of the files, or a part of one that holds all experts.
struct TensorSource {
  std::string name;
  // With `fused`: the tensor is [E, rows, columns], and the expert's part is the rows
  // [first_row, first_row + its own row count) of plane `expert`; the tensor has `fused_rows` rows.
  bool fused = false;
  int64_t first_row = 0;
  int64_t fused_rows = 0;
};

struct ModelFamily {
  std::string_view model_type;
  std::string_view architecture;
  absl::StatusOr<spec::ModelSpec> (*read_spec)(const JsonFile& config);
  // The inverse of read_spec.
  boost::json::object (*config_of)(const spec::ModelSpec& spec);
  std::string (*tensor_name)(const TensorKey& key);
  // Where an expert's tensor lies in files that keep all experts of a layer in one tensor.
  TensorSource (*fused_source)(const spec::ModelSpec& spec, const TensorKey& key);
  // Tensors that old files carry and that config.json already says everything about.
  bool (*is_redundant)(std::string_view tensor_name);
};

// Unimplemented, with the names there are, for a family that is not known.
absl::StatusOr<const ModelFamily*> FindFamily(std::string_view model_type);

// The fields that all families share: see model_family.cc for the limits.
absl::StatusOr<spec::ModelSpec> ReadCommonSpec(const JsonFile& config);

}  // namespace zp::checkpoint
