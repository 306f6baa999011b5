/* What every cmocka program of this room includes, in the order that cmocka.h demands. */
#ifndef SWITCHYARD_TESTS_UNIT_BASE_UNIT_H
#define SWITCHYARD_TESTS_UNIT_BASE_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

/* A seed that differs from run to run and is printed, so that a failure can be repeated with
 * SWITCHYARD_SEED. */
static inline uint64_t unit_seed(void)
{
    const char *text = getenv("SWITCHYARD_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : clock_wall_ms();
    print_message("seed %llu (repeat with SWITCHYARD_SEED)\n", (unsigned long long)seed);
    return seed;
}

#endif
