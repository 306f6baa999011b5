/* Greedy-dual size frequency with decayed counts: worth per byte = uses x load seconds / bytes. The
 * decay plays the part of the inflating clock value of the original (Cherkasova 1998): without it a
 * once popular expert stays for ever. */
#include "memtier/policy.h"

static double gdsf_worth(const struct policy_view *v)
{
    return policy_decay(v->uses, v->idle_uses) * v->load_seconds / (double)v->bytes;
}

const struct policy policy_gdsf = {"gdsf", gdsf_worth};
