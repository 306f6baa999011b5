/* Random schedules over the tiers, for the unit test (short) and for memtier_soak (as long as
 * wanted). */
#ifndef SWITCHYARD_TEST_MEMTIER_SCHEDULE_H
#define SWITCHYARD_TEST_MEMTIER_SCHEDULE_H

#include "support.h"

#include "memtier/residency.h"

#define SEGMENTS 60
#define MIB ((uint64_t)1 << 20)

/* One store for all schedules of a program: cmocka's group set-up and tear-down. */
extern struct sample samples[SEGMENTS];
int schedule_make_store(void **state);
int schedule_remove_store(void **state);

struct tiers {
    struct memtier_store *store;
    struct memtier *m;
    uint32_t seg[SEGMENTS];
};

struct tiers open_tiers(struct memtier_options opt);
void close_tiers(struct tiers *t);

struct schedule_how {
    int steps;
    int check_data; /* compare what is resident with what it must be every so many steps */
    bool budget;    /* change the budget too */
};
/* Fails the test with the seed and the step when an invariant does not hold. A third of the seeds
 * has reads that fail, half of them each policy. Returns how many pages came out of a spill file.
 */
uint64_t schedule_run(uint64_t seed, struct memtier_options opt, struct schedule_how how);

#endif
