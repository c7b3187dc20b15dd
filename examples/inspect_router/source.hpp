// SPDX-License-Identifier: MIT
// Bytes that are read from any place: a file, or memory where tests made it up.
#ifndef INSPECT_ROUTER_SOURCE_HPP
#define INSPECT_ROUTER_SOURCE_HPP

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "error.hpp"

namespace inspect_router {

class Source {
 public:
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  virtual ~Source() = default;

  /// For messages.
  const std::string& name() const { return name_; }
  std::uint64_t size() const { return size_; }

  /// Copies `count` bytes from `offset`, which must lie within.
  void read(std::uint64_t offset, void* to, std::uint64_t count) const {
    if (count > size_ || offset > size_ - count) {
      refuse(name_, "byte " + std::to_string(offset),
             "the file ends at byte " + std::to_string(size_) + ", before " +
                 std::to_string(count) + " more: is it complete?");
    }
    if (count != 0) copy(offset, to, count);
  }
  std::string read(std::uint64_t offset, std::uint64_t count) const {
    if (count > size_) read(offset, nullptr, count);  // refuses before memory is taken
    std::string bytes(static_cast<std::size_t>(count), '\0');
    read(offset, bytes.data(), count);
    return bytes;
  }

 protected:
  Source(std::string name, std::uint64_t size) : name_(std::move(name)), size_(size) {}
  virtual void copy(std::uint64_t offset, void* to, std::uint64_t count) const = 0;

 private:
  std::string name_;
  std::uint64_t size_;
};

class FileSource : public Source {
 public:
  explicit FileSource(const std::filesystem::path& path)
      : Source(path.string(), size_of(path)), file_(path, std::ios::binary) {
    if (!file_) refuse(name(), "file", "cannot be opened for reading");
  }

 private:
  static std::uint64_t size_of(const std::filesystem::path& path) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) refuse(path.string(), "file", "does not exist");
    if (!std::filesystem::is_regular_file(path, error)) {
      refuse(path.string(), "file", "is not a regular file");
    }
    return std::filesystem::file_size(path, error);
  }

  void copy(std::uint64_t offset, void* to, std::uint64_t count) const override {
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    if (!file_.read(static_cast<char*>(to), static_cast<std::streamsize>(count))) {
      refuse(name(), "byte " + std::to_string(offset), "cannot be read");
    }
  }

  mutable std::ifstream file_;
};

class MemorySource : public Source {
 public:
  MemorySource(std::string name, std::string bytes)
      : Source(std::move(name), bytes.size()), bytes_(std::move(bytes)) {}

 private:
  void copy(std::uint64_t offset, void* to, std::uint64_t count) const override {
    std::memcpy(to, bytes_.data() + offset, static_cast<std::size_t>(count));
  }

  std::string bytes_;
};

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_SOURCE_HPP
