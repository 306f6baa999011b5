/* Private to memtier/: what an eviction policy is inside; what it sees and answers is in memtier.h.
 * It decides only: it moves no byte, takes no lock, reads no clock, and sees nothing but the view
 * of one segment, so the same code serves the daemon, the tests and a replay. */
#ifndef SWITCHYARD_MEMTIER_POLICY_H
#define SWITCHYARD_MEMTIER_POLICY_H

#include "memtier/memtier.h"

/* In reservations, not seconds: a quiet night should not make everything equally forgotten. */
#define POLICY_HALF_LIFE 512.0

struct policy {
    const char *name;
    /* The worth of one byte of it, >= 0: what has the least goes first. */
    double (*worth_per_byte)(const struct policy_view *v);
};
extern const struct policy policy_lru, policy_gdsf;

#endif
