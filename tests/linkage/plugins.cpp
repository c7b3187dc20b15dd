// SPDX-License-Identifier: MIT
// Three plugins in one process: two of one version of gatepro share their kernels, which shows that
// a linker merges what has one name; the one of another version keeps its own.
#include <cstdio>

extern "C" const void* plugin_present();
extern "C" const void* plugin_twin();
extern "C" const void* plugin_other();

int main() {
  const bool merged = plugin_present() == plugin_twin();
  const bool apart = plugin_present() != plugin_other();
  std::printf("one version: %s, two versions: %s\n", merged ? "shared" : "apart",
              apart ? "apart" : "shared");
  return merged && apart ? 0 : 1;
}
