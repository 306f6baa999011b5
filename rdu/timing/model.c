/* The cost of one kernel, launch, copy and collective. Formulas: SN40L paper (arXiv 2405.07518) sections
 * III, IV-D and VI as collected for this project; the parameters are the chip file's. Per socket unless
 * a comment says otherwise. */
#include "rdu/timing/timing.h"

void rdu_time_kernel(const struct rdu_chip *chip, const struct rdu_work *w, bool fused,
                     struct rdu_clock *c)
{
    double share = fused ? chip->efficiency_hbm_fused : chip->efficiency_hbm_unfused;
    const struct {
        enum rdu_cost cost;
        double s;
    } part[] = {
        {RDU_COST_COMPUTE, w->flops / (chip->socket_peak_bf16_flop_per_s * chip->efficiency_compute)},
        {RDU_COST_HBM, w->hbm_bytes / (chip->socket_hbm_bytes_per_s * share)},
        {RDU_COST_SRAM, w->sram_bytes / chip->socket_sram_bytes_per_s},
        {RDU_COST_P2P, w->p2p_bytes / chip->socket_p2p_bytes_per_s},
        {RDU_COST_DDR, w->ddr_bytes / chip->socket_ddr_bytes_per_s},
    };
    size_t slowest = 0;
    for (size_t i = 1; i < BASE_COUNT(part); i++) {
        if (part[i].s > part[slowest].s)
            slowest = i;
    }
    c->s[part[slowest].cost] += part[slowest].s;
    c->s[RDU_COST_FILL] += chip->launch_fill_s;
    c->s[RDU_COST_P2P] += w->hops * chip->socket_p2p_hop_s;
    c->flops += w->flops * chip->node_sockets;
    c->hbm_bytes += w->hbm_bytes * chip->node_sockets;
    c->p2p_bytes += w->p2p_bytes * chip->node_sockets;
}

void rdu_time_launch(const struct rdu_chip *chip, enum rdu_level level, struct rdu_clock *c)
{
    bool host = level == RDU_LEVEL_UNFUSED || level == RDU_LEVEL_FUSED_SO;
    c->s[RDU_COST_LAUNCH] += host ? chip->launch_so_s : chip->launch_ho_s;
    c->launches++;
}

double rdu_time_pipeline_s(double fill_s, uint64_t n_tiles, const double *stage_s, size_t stages)
{
    double slowest = 0;
    for (size_t i = 0; i < stages; i++)
        slowest = BASE_MAX(slowest, stage_s[i]);
    return fill_s + (double)n_tiles * slowest;
}

double rdu_time_switch_s(const struct rdu_chip *chip, double bytes)
{
    return bytes / chip->node_d2h_bytes_per_s + chip->node_switch_fixed_s;
}

double rdu_time_host_copy_s(const struct rdu_chip *chip, double bytes)
{
    return bytes / chip->node_host_link_bytes_per_s;
}

/* Between fully connected sockets an all-reduce of little data is one hop (each sends all it has to
 * all), one of much data is a reduce-scatter and an all-gather: two hops, 2 (n - 1) / n of the bytes. */
static struct rdu_work all_reduce(const struct rdu_chip *chip, double bytes)
{
    double n = chip->node_sockets, rate = chip->socket_p2p_bytes_per_s;
    double once = (n - 1) * bytes, twice = 2 * (n - 1) / n * bytes;
    if (chip->socket_p2p_hop_s + once / rate <= 2 * chip->socket_p2p_hop_s + twice / rate)
        return (struct rdu_work){.p2p_bytes = once, .hops = 1};
    return (struct rdu_work){.p2p_bytes = twice, .hops = 2};
}

struct rdu_work rdu_time_collective(const struct rdu_chip *chip, enum rdu_collective kind,
                                    double bytes)
{
    double n = chip->node_sockets;
    if (n <= 1 || bytes <= 0)
        return (struct rdu_work){0};
    if (kind == RDU_ALL_REDUCE)
        return all_reduce(chip, bytes);
    /* Each socket brings its own n-th, or the one that has it sends it to each: the slowest link
     * carries (n - 1) / n of the value, resp. the value once as a scatter and a gather. */
    if (kind == RDU_ALL_GATHER)
        return (struct rdu_work){.p2p_bytes = (n - 1) / n * bytes, .hops = 1};
    return (struct rdu_work){.p2p_bytes = 2 * (n - 1) / n * bytes, .hops = 2};
}
