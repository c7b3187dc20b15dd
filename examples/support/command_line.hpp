// SPDX-License-Identifier: MIT
// How a program ends: its exit code, and the one line that says what was wrong.
#ifndef EXAMPLES_SUPPORT_COMMAND_LINE_HPP
#define EXAMPLES_SUPPORT_COMMAND_LINE_HPP

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "support/error.hpp"
#include "support/plain_text.hpp"

namespace report {

enum ExitCode { finished = 0, failed = 1, bad_input = 2, interrupted = 130 };

/// Prints "program: message" on one line, whoever wrote the message.
inline int complain(const std::string& program, const std::string& message, ExitCode code) {
  std::fprintf(stderr, "%s: %s\n", program.c_str(), plain_text(message).c_str());
  return code;
}

/// Parses the command line and calls body(), which returns the exit code. `without_memory` is said
/// where memory runs out.
template <class Body>
int run_program(const std::string& program, const std::string& without_memory, CLI::App& app,
                int argc, char** argv, const Body& body) {
  try {
    app.parse(argc, argv);
    return body();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return complain(program, std::string(error.what()) + " (see --help)", bad_input);
  } catch (const UserError& error) {
    return complain(program, error.what(), bad_input);
  } catch (const std::bad_alloc&) {
    return complain(program, without_memory, bad_input);
  } catch (const std::exception& error) {
    return complain(program, error.what(), failed);
  }
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_COMMAND_LINE_HPP
