// SPDX-License-Identifier: MIT
// Names that well-known headers define as macros. Each stands for something that no declaration
// survives, so that a use of the name is an error whatever the real macro would have made of it.
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define HOSTILE ) hostile macro (

// C's <complex.h>, which GNU dialects of C++ hand through.
#undef I
#undef _Complex_I
#define I HOSTILE
#define complex HOSTILE
#define imaginary HOSTILE
#define _Complex_I HOSTILE

// Qt.
#define slots HOSTILE
#define signals HOSTILE
#define emit HOSTILE
#define foreach(...) HOSTILE
#define forever HOSTILE

// macOS: AssertMacros.h and ConditionalMacros.h.
#define check(...) HOSTILE
#define check_noerr(...) HOSTILE
#define debug_string(...) HOSTILE
#define ncheck(...) HOSTILE
#define require(...) HOSTILE
#define require_action(...) HOSTILE
#define require_quiet(...) HOSTILE
#define verify(...) HOSTILE
#define nil HOSTILE
#define YES HOSTILE
#define NO HOSTILE

// Windows: windef.h, wingdi.h, winuser.h, rpcndr.h.
#define min(a, b) HOSTILE
#define max(a, b) HOSTILE
#define near HOSTILE
#define far HOSTILE
#define small HOSTILE
#define hyper HOSTILE
#define interface HOSTILE
#define pascal HOSTILE
#define cdecl HOSTILE
#define IN HOSTILE
#define OUT HOSTILE
#define OPTIONAL HOSTILE
#define CONST HOSTILE
#define VOID HOSTILE
#define TRUE HOSTILE
#define FALSE HOSTILE
#define ERROR HOSTILE
#define DELETE HOSTILE
#define STRICT HOSTILE
#define ABSOLUTE HOSTILE
#define RELATIVE HOSTILE
#define TRANSPARENT HOSTILE
#define NEAR HOSTILE
#define FAR HOSTILE
#define Yield() HOSTILE
#define GetObject HOSTILE
#define GetMessage HOSTILE
#define SendMessage HOSTILE

// X11: X.h, Xlib.h, Xutil.h.
#define Above HOSTILE
#define Always HOSTILE
#define Below HOSTILE
#define Bool HOSTILE
#define Complex HOSTILE
#define Convex HOSTILE
#define CurrentTime HOSTILE
#define CursorShape HOSTILE
#define DestroyAll HOSTILE
#define Expose HOSTILE
#define False HOSTILE
#define FocusIn HOSTILE
#define FocusOut HOSTILE
#define GrayScale HOSTILE
#define KeyPress HOSTILE
#define None HOSTILE
#define Opposite HOSTILE
#define Status HOSTILE
#define Success HOSTILE
#define True HOSTILE
#define Unsorted HOSTILE
#define XYBitmap HOSTILE

// The C library and the kernel: ctype of newlib and BSD, sys/types.h, sys/param.h, termios.h.
#define _A HOSTILE
#define _B HOSTILE
#define _C HOSTILE
#define _D HOSTILE
#define _L HOSTILE
#define _N HOSTILE
#define _P HOSTILE
#define _S HOSTILE
#define _U HOSTILE
#define _X HOSTILE
#define B0 HOSTILE
#define B1 HOSTILE
#define B50 HOSTILE
#define ECHO HOSTILE
#define PAGE_SIZE HOSTILE
#define NBBY HOSTILE
#define HZ HOSTILE
#undef major
#undef minor
#undef unix
#undef linux
#define major(device) HOSTILE
#define minor(device) HOSTILE
#define makedev(a, b) HOSTILE
#define unix HOSTILE
#define linux HOSTILE
#define sun HOSTILE
#define mips HOSTILE
#define arm HOSTILE
#define vax HOSTILE
#define howmany(a, b) HOSTILE
#define roundup(a, b) HOSTILE
#define powerof2(x) HOSTILE
#define likely(x) HOSTILE
#define unlikely(x) HOSTILE
#define container_of(a, b, c) HOSTILE
#undef assert
#define assert(x) HOSTILE
#undef isnan
#undef isinf
#undef isfinite
#undef signbit
#define isnan(x) HOSTILE
#define isinf(x) HOSTILE
#define isfinite(x) HOSTILE
#define signbit(x) HOSTILE
#define DOMAIN HOSTILE
#define OVERFLOW HOSTILE
#define UNDERFLOW HOSTILE
#undef M_PI
#define M_PI HOSTILE

// Boards, numerical and scripting libraries: Arduino, f2c, OpenFOAM, Perl, R, gettext.
#define F(x) HOSTILE
#define PI HOSTILE
#define TWO_PI HOSTILE
#define DEFAULT HOSTILE
#define INPUT HOSTILE
#define OUTPUT HOSTILE
#define HIGH HOSTILE
#define LOW HOSTILE
#define abs(x) HOSTILE
#define round(x) HOSTILE
#define radians(x) HOSTILE
#define degrees(x) HOSTILE
#define sq(x) HOSTILE
#define bit(x) HOSTILE
#define lowByte(x) HOSTILE
#define dabs(x) HOSTILE
#define constrain(a, b, c) HOSTILE
#define forAll(...) HOSTILE
#define Copy(...) HOSTILE
#define Zero(...) HOSTILE
#define length HOSTILE
#define error HOSTILE
#define warning HOSTILE
#define _(x) HOSTILE

// Tests and logs.
#define CHECK(...) HOSTILE
#define DCHECK(...) HOSTILE
#define REQUIRE(...) HOSTILE
#define ASSERT(...) HOSTILE
#define TEST(...) HOSTILE
#define FAIL(...) HOSTILE
#define LOG(...) HOSTILE
#define DEBUG HOSTILE
#define INFO HOSTILE
#define WARNING HOSTILE
#define FATAL HOSTILE
#define TRACE HOSTILE
#define NDEBUG HOSTILE
