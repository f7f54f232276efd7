// Every safetensors file of a model directory under one roof: model.safetensors, or the shards that
// model.safetensors.index.json names.
//
// Thread safety: immutable after OpenAll. Ownership: views point into the files, which live as long
// as the shards do.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "checkpoint/safetensors.h"

namespace zp::checkpoint {

class ShardSet {
 public:
  // Errors: NotFound or InvalidArgument with the file and the tensor.
  absl::Status OpenAll(const std::string& directory);

  // nullptr where no file has such a tensor.
  const TensorView* Find(const std::string& name) const;
  const Fp8Tensor* FindFp8(const std::string& name) const;

  // REQUIRES: there is a tensor of this name.
  const std::string& FileOf(const std::string& name) const;
  std::vector<std::string> Names() const;
  std::vector<std::unique_ptr<SafetensorsFile>> TakeShards();

 private:
  // One of the views is set.
  struct Located {
    const SafetensorsFile* shard = nullptr;
    const TensorView* view = nullptr;
    const Fp8Tensor* fp8 = nullptr;
  };

  absl::Status OpenShard(std::string_view file_name);
  absl::Status OpenIndexed();
  absl::Status Add(const std::string& name, const Located& tensor);

  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::map<std::string, Located> tensors_;
};

}  // namespace zp::checkpoint
