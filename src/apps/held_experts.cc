#include "apps/held_experts.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHugePageBytes = size_t{2} << 20;

absl::Status ErrnoStatus(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

// Only where an address and its place in the file agree within a huge page can one be mapped.
absl::StatusOr<std::span<std::byte>> MapFile(const std::string& path, size_t bytes) {
  const fabric::Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) {
    return ErrnoStatus(path);
  }
  const size_t room_bytes = bytes + kHugePageBytes;
  void* room = mmap(nullptr, room_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) {
    return ErrnoStatus(path);
  }
  const auto address = reinterpret_cast<uintptr_t>(room);
  const size_t head_bytes = (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes;
  auto* begin = static_cast<std::byte*>(room) + head_bytes;
  void* mapped =
      mmap(begin, bytes, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file.number(), 0);
  if (mapped == MAP_FAILED) {
    return ErrnoStatus(path);
  }
  return std::span(begin, bytes);
}

// Of shared memory, of all processes.
int64_t HugePageBytes() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("ShmemHugePages:")) {
      return std::stoll(line.substr(line.find(':') + 1)) * 1024;
    }
  }
  return 0;
}

absl::Status CopyFile(const std::string& from, const std::string& to) {
  constexpr size_t kPieceBytes = size_t{8} << 20;  // whole huge pages
  std::ifstream source(from, std::ios::binary);
  std::ofstream target(to, std::ios::binary);
  std::vector<char> piece(kPieceBytes);
  while (source && target) {
    source.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    target.write(piece.data(), source.gcount());
  }
  target.close();
  return source.eof() && target ? absl::OkStatus()
                                : absl::InternalError(fmt::format("{}: cannot be copied", from));
}

}  // namespace

absl::StatusOr<std::unique_ptr<HeldExperts>> HeldExperts::Map(
    const checkpoint::PackedExperts& packed, const std::string& directory) {
  auto held = std::make_unique<HeldExperts>(std::vector<std::vector<const std::byte*>>{});
  for (const checkpoint::PackedLayer& layer : packed.layers) {
    std::vector<const std::byte*>& blobs = held->blobs_.emplace_back();
    if (layer.path.empty()) {
      continue;
    }
    const std::string path = fs::path(directory) / fs::path(layer.path).filename();
    ZP_ASSIGN_OR_RETURN(const std::span<std::byte> mapping,
                        MapFile(path, packed.expert_count * packed.expert_bytes));
    held->mappings_.push_back(mapping);
    for (int32_t expert = 0; expert < packed.expert_count; ++expert) {
      blobs.push_back(mapping.data() + expert * packed.expert_bytes);
    }
  }
  return held;
}

HeldExperts::~HeldExperts() {
  for (const std::span<std::byte> mapping : mappings_) {
    munmap(mapping.data(), mapping.size());
  }
}

ExpertCopies::ExpertCopies(fabric::Descriptor descriptor)
    : descriptor_(std::move(descriptor)),
      directory_(fmt::format("/proc/{}/fd/{}", getpid(), descriptor_.number())) {}

// Mounted, opened and unmounted at once: from then on it lives as long as the descriptor.
absl::StatusOr<std::unique_ptr<ExpertCopies>> ExpertCopies::Make(
    const checkpoint::PackedExperts& packed) {
  std::string place = (fs::temp_directory_path() / "zeroprefill_experts_XXXXXX").string();
  if (mkdtemp(place.data()) == nullptr) {
    return ErrnoStatus(place);
  }
  const bool is_mounted =
      mount("zeroprefill", place.c_str(), "tmpfs", 0, "huge=always,size=100%") == 0;
  const int error = errno;
  const int number = is_mounted ? open(place.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
  if (is_mounted) {
    umount2(place.c_str(), MNT_DETACH);
  }
  rmdir(place.c_str());
  if (number < 0) {
    return absl::ErrnoToStatus(error, "a file system in memory with huge pages");
  }
  std::unique_ptr<ExpertCopies> copies(new ExpertCopies(fabric::Descriptor(number)));
  const int64_t before = HugePageBytes();
  int64_t bytes = 0;
  for (const checkpoint::PackedLayer& layer : packed.layers) {
    if (!layer.path.empty()) {
      const fs::path copy = fs::path(copies->directory()) / fs::path(layer.path).filename();
      ZP_RETURN_IF_ERROR(CopyFile(layer.path, copy.string()));
      bytes += packed.expert_count * static_cast<int64_t>(packed.expert_bytes);
    }
  }
  copies->huge_page_fraction_ = static_cast<double>(HugePageBytes() - before) / bytes;
  return copies;
}

}  // namespace zp::apps
