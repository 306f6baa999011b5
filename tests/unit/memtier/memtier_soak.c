/* Random events over the tiers for as long as wanted: budgets, states and bytes are checked after
 * each.
 *
 *   memtier_soak [--events N] [--seed S]
 *
 * Prints how many events ran, from which seed, and what came of them; exit code 0 when every
 * invariant held. Each schedule has its own pool, ddr, policy, loader and faults, all from the
 * seed. */
#include "schedule.h"

#include <stdlib.h>
#include <string.h>

#define STEPS 2500

static uint64_t events = 20000, seed = 1;

static void budgets_hold(void **state)
{
    uint64_t done = 0, t0 = clock_ns();
    (void)state;
    for (uint64_t k = 0; done < events; k++) {
        uint64_t s = seed * 1000003 + k;
        struct memtier_options opt = {.hbm_bytes = (3 + s % 7) * MIB + 65536 * (s % 11),
                                      .ddr_bytes = s % 2 * (1 + s % 4) * 2 * MIB,
                                      .loader = (enum memtier_loader)(s % 4)};
        int steps = (int)BASE_MIN((uint64_t)STEPS, events - done);
        (void)schedule_run(
            s, opt, (struct schedule_how){.steps = steps, .check_data = 64, .budget = s % 3 == 0});
        done += (uint64_t)steps;
    }
    printf("%llu events from seed %llu: budgets never exceeded, no byte wrong, in %.0f s\n",
           (unsigned long long)done, (unsigned long long)seed, (double)(clock_ns() - t0) * 1e-9);
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--events") == 0)
            events = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 10);
        else
            return 2;
    }
    if (argc % 2 == 0 || events == 0) {
        fprintf(stderr, "memtier_soak [--events N] [--seed S]\n");
        return 2;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(budgets_hold)};
    return cmocka_run_group_tests(tests, schedule_make_store, schedule_remove_store);
}
