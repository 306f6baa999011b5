/* Node time as a sum by what it was spent on. It only moves when something is charged to it: nothing
 * here reads a clock of this machine. */
#include "rdu/timing/timing.h"

static const char *const cost_names[] = {
    [RDU_COST_LAUNCH] = "launch", [RDU_COST_FILL] = "fill", [RDU_COST_COMPUTE] = "compute",
    [RDU_COST_HBM] = "hbm",       [RDU_COST_SRAM] = "sram", [RDU_COST_P2P] = "p2p",
    [RDU_COST_DDR] = "ddr",       [RDU_COST_HOST] = "host", [RDU_COST_FIXED] = "fixed",
};

const char *rdu_cost_name(enum rdu_cost c)
{
    return cost_names[c];
}

void rdu_clock_add(struct rdu_clock *c, const struct rdu_clock *more, double times)
{
    for (size_t i = 0; i < RDU_COSTS; i++)
        c->s[i] += times * more->s[i];
    c->launches += (uint64_t)(times * (double)more->launches);
    c->flops += times * more->flops;
    c->hbm_bytes += times * more->hbm_bytes;
    c->p2p_bytes += times * more->p2p_bytes;
}

double rdu_clock_seconds(const struct rdu_clock *c)
{
    double sum = 0;
    for (size_t i = 0; i < RDU_COSTS; i++)
        sum += c->s[i];
    return sum;
}
