// SPDX-License-Identifier: MIT
// Raw bytes are a .npy file, a .safetensors file, its index or a trace; the first byte says which.
// A reader either throws UserError with a message of one line, or gives what lies within the file:
// tensors that can be read whole, without more memory than a few times the file.
#include <cstdint>
#include <string>

#include "fuzz/fuzzing.hpp"
#include "inspect_router/npy.hpp"
#include "inspect_router/safetensors.hpp"
#include "inspect_router/trace.hpp"

namespace {

using namespace inspect_router;
using fuzzing::check;

void read(const Source& source, const Tensor& tensor) {
  const auto matrix = read_matrix(source, tensor);
  check(static_cast<std::uint64_t>(matrix.size()) <= source.size(), "no more numbers than bytes");
}

void read_all(int format, const Source& source) {
  switch (format) {
    case 0:
      read(source, read_npy_header(source));
      break;
    case 1:
      for (const auto& [name, stored] : read_safetensors_header(source)) {
        check(stored.begin <= stored.end && stored.end <= source.size(), "offsets in the file");
        read(source, readable(source.name(), name, stored));
      }
      break;
    case 2:
      for (const auto& [name, file] : read_safetensors_index(source)) {
        check(file.find('/') == std::string::npos && file[0] != '.', "files of the same folder");
      }
      break;
    default: {
      Trace trace;
      add_trace(source, trace);
      for (const auto& [key, layer] : trace) {
        check(layer.ids.size() == static_cast<std::size_t>(layer.tokens() * layer.top_k) &&
                  (layer.weights.empty() || layer.weights.size() == layer.ids.size()),
              "as many weights as ids, or none");
        for (const std::int32_t id : layer.ids) check(id >= -1 && id < 65536, "ids in range");
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const MemorySource source("file", std::string(data + 1, data + size));
  try {
    read_all(data[0] % 4, source);
  } catch (const UserError& error) {
    const std::string message = error.what();
    check(message.rfind("file: ", 0) == 0, "messages name the file");
    check(message.find('\n') == std::string::npos, "messages have one line");
  }
  return 0;
}
