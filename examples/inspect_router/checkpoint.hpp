// SPDX-License-Identifier: MIT
// Finds the routers in what the user names: files, folders, sharded checkpoints, stacks.
#ifndef INSPECT_ROUTER_CHECKPOINT_HPP
#define INSPECT_ROUTER_CHECKPOINT_HPP

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "npy.hpp"
#include "safetensors.hpp"
#include "trace.hpp"

namespace inspect_router {

namespace fs = std::filesystem;

/// A router that can be loaded.
struct StoredRouter {
  std::string label;
  std::optional<std::uint64_t> layer;  ///< What its name says.
  std::shared_ptr<Source> source;
  Tensor tensor;
  std::uint64_t number = 0;  ///< Within a stack.

  RowMatrix<float> load() const { return read_matrix(*source, tensor, number); }
};

/// Names of router weights in checkpoints that are published: Qwen, DeepSeek, OLMoE; Mixtral;
/// Granite; gpt-oss; Llama 4; Megatron. The star in front: "language_" of a model that also sees.
inline const std::vector<std::string>& known_names() {
  static const std::vector<std::string> names = {
      "*model.layers.*.mlp.gate.weight",
      "*model.layers.*.block_sparse_moe.gate.weight",
      "*model.layers.*.block_sparse_moe.router.layer.weight",
      "*model.layers.*.mlp.router.weight",
      "*.layers.*.feed_forward.router.weight",
      "*decoder.layers.*.mlp.router.weight"};
  return names;
}

/// True if `name` is `pattern`, where each '*' stands for any characters, as few as fit. `parts`:
/// those. The time grows with the product of the two lengths at most.
inline bool matches(std::string_view pattern, std::string_view name,
                    std::vector<std::string>& parts) {
  parts.clear();
  std::size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name;
  if (name.substr(0, star) != pattern.substr(0, star)) return false;
  name.remove_prefix(star);
  pattern.remove_prefix(star + 1);
  while ((star = pattern.find('*')) != std::string_view::npos) {
    const std::size_t size = name.find(pattern.substr(0, star));
    if (size == std::string_view::npos) return false;
    parts.emplace_back(name.substr(0, size));
    name.remove_prefix(size + star);
    pattern.remove_prefix(star + 1);
  }
  if (name.size() < pattern.size()) return false;
  const std::size_t size = name.size() - pattern.size();
  parts.emplace_back(name.substr(0, size));
  return name.substr(size) == pattern;
}

/// The number that stands last among the parts.
inline std::optional<std::uint64_t> layer_number(const std::vector<std::string>& parts) {
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    const bool digits = !part->empty() && part->size() < 10 &&
                        part->find_first_not_of("0123456789") == std::string::npos;
    if (digits) return std::stoull(*part);
  }
  return std::nullopt;
}

/// The number that stands last in a name, between points if there is one.
inline std::optional<std::uint64_t> layer_number(const std::string& name) {
  const auto cut = [&](const auto& is_inside) {
    std::vector<std::string> parts(1);
    for (const char c : name) {
      if (is_inside(c)) {
        parts.back() += c;
      } else {
        parts.emplace_back();
      }
    }
    return parts;
  };
  const auto number = layer_number(cut([](char c) { return c != '.'; }));
  return number ? number : layer_number(cut([](char c) { return c >= '0' && c <= '9'; }));
}

namespace detail {

class Finder {
 public:
  explicit Finder(std::string pattern) : pattern_(std::move(pattern)) {}

  void add(const fs::path& path) {
    std::error_code error;
    const std::string name = path.filename().string();
    if (fs::is_directory(path, error)) {
      add_folder(path);
    } else if (path.extension() == ".npy") {
      add_npy(path);
    } else if (path.extension() == ".safetensors") {
      add_safetensors(path);
    } else if (name.size() > 11 && name.compare(name.size() - 11, 11, ".index.json") == 0) {
      add_index(path);
    } else {
      FileSource exists(path);
      refuse(path.string(), "name", "need .npy, .safetensors, .index.json or a folder");
    }
  }

  std::vector<StoredRouter> take() {
    if (routers_.empty()) complain();
    std::stable_sort(routers_.begin(), routers_.end(), [](const auto& a, const auto& b) {
      return std::tuple(a.layer.value_or(~std::uint64_t{0}), a.label, a.number) <
             std::tuple(b.layer.value_or(~std::uint64_t{0}), b.label, b.number);
    });
    return std::move(routers_);
  }

 private:
  void add_folder(const fs::path& folder) {
    if (fs::exists(folder / "model.safetensors.index.json")) {
      add_index(folder / "model.safetensors.index.json");
    } else if (fs::exists(folder / "model.safetensors")) {
      add_safetensors(folder / "model.safetensors");
    } else {
      std::vector<fs::path> files;
      for (const auto& entry : fs::directory_iterator(folder)) {
        if (entry.path().extension() == ".npy") files.push_back(entry.path());
      }
      std::sort(files.begin(), files.end());
      for (const fs::path& file : files) add_npy(file);
      if (files.empty()) {
        refuse(folder.string(), "folder",
               "need model.safetensors.index.json, model.safetensors or *.npy in it");
      }
    }
  }

  void add_npy(const fs::path& path) {
    auto source = std::make_shared<FileSource>(path);
    const Tensor tensor = read_npy_header(*source);
    add(path.filename().string(), layer_number(path.stem().string()), source, tensor);
  }

  void add_safetensors(const fs::path& path) {
    auto source = std::make_shared<FileSource>(path);
    for (const auto& [name, stored] : read_safetensors_header(*source)) {
      add_if_wanted(name, source, stored);
    }
  }

  void add_index(const fs::path& path) {
    std::map<std::string, std::vector<std::string>> wanted;  // of each shard
    for (const auto& [name, file] : read_safetensors_index(FileSource(path))) {
      names_.push_back(name);
      if (is_wanted(name)) wanted[file].push_back(name);
    }
    for (const auto& [file, names] : wanted) {
      auto source = std::make_shared<FileSource>(path.parent_path() / file);
      const auto tensors = read_safetensors_header(*source);
      for (const std::string& name : names) {
        const auto found = tensors.find(name);
        if (found == tensors.end()) {
          refuse(path.string(), "weight_map " + shown(name), "is not in " + shown(file));
        }
        add_if_wanted(name, source, found->second);
      }
    }
  }

  bool is_wanted(const std::string& name) {
    if (!pattern_.empty()) return matches(pattern_, name, parts_);
    return std::any_of(known_names().begin(), known_names().end(),
                       [&](const std::string& known) { return matches(known, name, parts_); });
  }

  void add_if_wanted(const std::string& name, const std::shared_ptr<Source>& source,
                     const StoredTensor& stored) {
    names_.push_back(name);
    if (!is_wanted(name)) return;
    const std::optional<std::uint64_t> layer = layer_number(parts_);
    add(name, layer ? layer : layer_number(name), source, readable(source->name(), name, stored));
  }

  void add(const std::string& label, std::optional<std::uint64_t> layer,
           const std::shared_ptr<Source>& source, const Tensor& tensor) {
    if (tensor.shape.size() != 3) {
      routers_.push_back({label, layer, source, tensor});
      return;
    }
    constexpr std::uint64_t most = 4096;
    if (tensor.shape[0] == 0 || tensor.shape[0] > most) {
      refuse(source->name(), "tensor " + shown(tensor.name),
             "need 1 to 4096 layers in a stack (got the shape " + text_of(tensor.shape) + ")");
    }
    for (std::uint64_t n = 0; n < tensor.shape[0]; ++n) {
      routers_.push_back({label + " [" + std::to_string(n) + "]", n, source, tensor, n});
    }
  }

  [[noreturn]] void complain() const {
    std::string message =
        "no tensor's name fits " +
        (pattern_.empty() ? std::string("a pattern that is known") : "--name " + shown(pattern_));
    // A few names, those that sound like routers first.
    std::vector<std::string> names = names_;
    std::stable_partition(names.begin(), names.end(), [](const std::string& name) {
      return name.find("gate") != std::string::npos || name.find("router") != std::string::npos;
    });
    names.resize(std::min<std::size_t>(names.size(), 5));
    for (const std::string& name : names) {
      message += (&name == &names.front() ? "; there are " : ", ") + shown(name);
    }
    throw UserError(message + "; give --name, with '*' for the layer");
  }

  std::string pattern_;
  std::vector<StoredRouter> routers_;
  std::vector<std::string> names_;
  std::vector<std::string> parts_;
};

}  // namespace detail

/// The routers in `paths`, in the order of their layers. `pattern`: names of tensors in
/// .safetensors, '*' for any characters; empty for the known ones.
inline std::vector<StoredRouter> find_routers(const std::vector<std::string>& paths,
                                              const std::string& pattern) {
  detail::Finder finder(pattern);
  for (const std::string& path : paths) finder.add(path);
  return finder.take();
}

/// The decisions in a file, or in all router_trace_rank*.jsonl of a folder.
inline Trace find_trace(const fs::path& path) {
  Trace trace;
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    add_trace(FileSource(path), trace);
    return trace;
  }
  std::vector<fs::path> files;
  std::vector<std::string> parts;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (matches("router_trace_rank*.jsonl", entry.path().filename().string(), parts)) {
      files.push_back(entry.path());
    }
  }
  if (files.empty()) refuse(path.string(), "folder", "need router_trace_rank*.jsonl in it");
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) add_trace(FileSource(file), trace);
  return trace;
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_CHECKPOINT_HPP
