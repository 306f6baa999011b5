/* Private to memtier/: what an eviction policy is. It decides only: it moves no byte, takes no lock,
 * reads no clock, and sees nothing but the view of one segment, so the same code serves the daemon,
 * the tests and a replay. */
#ifndef SWITCHYARD_MEMTIER_POLICY_H
#define SWITCHYARD_MEMTIER_POLICY_H

#include "memtier/memtier.h"

struct policy_view {
    uint64_t bytes;
    enum memtier_kind kind;
    uint64_t idle_uses;   /* reservations since it was last in one */
    uint64_t idle_ns;     /* since its last reservation */
    double uses;          /* reservations it was in, decayed: halved every POLICY_HALF_LIFE of them */
    double load_seconds;  /* to read it back, by the measured rate */
    uint64_t resident_ns; /* since it arrived */
    uint32_t queued;      /* requests already routed that will need it */
};
/* In reservations, not seconds: a quiet night should not make everything equally forgotten. */
#define POLICY_HALF_LIFE 512.0

struct policy {
    const char *name;
    /* The worth of one byte of it, >= 0: what has the least goes first. */
    double (*worth_per_byte)(const struct policy_view *v);
};
extern const struct policy policy_lru, policy_gdsf;
const struct policy *policy_find(const char *name); /* NULL = unknown */
/* The cost of evicting the segment under the policy and the rules that hold under every policy:
 * queued demand and minimum residency. */
double policy_cost(const struct policy *p, const struct policy_view *v);
/* The decayed count after `idle_uses` reservations without it. */
double policy_decay(double uses, uint64_t idle_uses);

#endif
