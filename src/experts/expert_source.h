// Where the experts that a host does not keep can be read: a peer's memory, or the packed files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "experts/expert_catalog.h"
#include "fabric/byte_source.h"

namespace zp::experts {

enum class SourceKind { kPeer, kFile };

constexpr std::string_view NameOf(SourceKind kind) {
  return kind == SourceKind::kPeer ? "peer" : "file";
}

// The blob of an expert in a source's bytes.
struct BlobPlace {
  bool is_there = false;
  uint32_t object = 0;
  uint64_t offset = 0;
};

struct ExpertSource {
  SourceKind kind = SourceKind::kFile;
  std::string name = {};                       // "host 2", "file": for metrics
  std::unique_ptr<fabric::ByteSource> bytes;   // null: not there now
  std::vector<std::vector<BlobPlace>> places;  // [layer][expert]
};

}  // namespace zp::experts
