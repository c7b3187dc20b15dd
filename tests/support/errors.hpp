// SPDX-License-Identifier: MIT
// Calls that must be refused, and with what message.
#ifndef GATEPRO_TESTS_SUPPORT_ERRORS_HPP
#define GATEPRO_TESTS_SUPPORT_ERRORS_HPP

#include <gtest/gtest.h>

#include <gatepro/core/error.hpp>
#include <initializer_list>
#include <string>

#include "support/function_ref.hpp"

/// `call` throws an Error, and its message holds all `parts`.
inline void expect_error(FunctionRef<void()> call, std::initializer_list<const char*> parts) {
  try {
    call();
    ADD_FAILURE() << "no Error; expected one about " << *parts.begin();
  } catch (const gatepro::Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.rfind("gatepro::", 0), 0U) << message;
    EXPECT_NE(message.find(": need "), std::string::npos) << message;
    for (const char* part : parts) {
      EXPECT_NE(message.find(part), std::string::npos)
          << "'" << part << "' missing in: " << message;
    }
  }
}

#endif  // GATEPRO_TESTS_SUPPORT_ERRORS_HPP
