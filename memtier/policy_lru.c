/* Least recently used, and what all policies share. Recency is counted in reservations: the order
 * is the same as by time, and a fake or a coarse clock cannot make two uses look simultaneous. The
 * worth 1/age lets windows of several segments be compared by their sum. */
#include "memtier/policy.h"

#include <math.h>
#include <string.h>

static double lru_worth(const struct policy_view *v)
{
    return 1.0 / (1.0 + (double)v->idle_uses);
}

const struct policy policy_lru = {"lru", lru_worth};

const struct policy *policy_find(const char *name)
{
    static const struct policy *const all[] = {&policy_lru, &policy_gdsf};
    for (size_t i = 0; i < BASE_COUNT(all); i++) {
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    }
    return NULL;
}

double policy_decay(double uses, uint64_t idle_uses)
{
    return uses * exp2(-(double)idle_uses / POLICY_HALF_LIFE);
}

double policy_cost(const struct policy *p, const struct policy_view *v)
{
    double cost = p->worth_per_byte(v) * (double)v->bytes;
    /* What was just loaded stays for about twice what loading it cost: five models on three places
     * otherwise do nothing but load. */
    if ((double)v->resident_ns < 2e9 * v->load_seconds)
        cost *= 1e3;
    /* Routed requests are the one forecast that is always right. */
    if (v->queued > 0)
        cost *= 1e6;
    return cost;
}
