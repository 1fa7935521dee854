/* What a program under callgrind says to it: count from here, write down what was counted.
 *
 * Built as a shared library and called through ctypes. Outside of valgrind both do nothing. */
#include <valgrind/callgrind.h>

int counting(void) { return (int)RUNNING_ON_VALGRIND; }

void begin(void) {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

void end(const char *name) {
    CALLGRIND_DUMP_STATS_AT(name);
    CALLGRIND_STOP_INSTRUMENTATION;
}
