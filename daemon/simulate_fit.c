/* Table V in closed form, and what its inputs would have to be.
 *
 * Three inputs are calibrated, on three of the four expert-only cells; the other nine cells, the eight
 * overall ones among them, are predictions. Leaving one cell out and fitting the rest shows how much each
 * cell decides. */
#include <math.h>
#include <string.h>

#include "daemon/simulate_preset.h"

const struct coe_cell coe_cells[COE_CELLS] = {
    {"table_v.overall.bs8.20.a100", 6.6, true, 8, 20, COE_A100, false},
    {"table_v.overall.bs8.20.h100", 3.7, true, 8, 20, COE_H100, false},
    {"table_v.overall.bs1.20.a100", 4.8, true, 1, 20, COE_A100, false},
    {"table_v.overall.bs1.20.h100", 2.8, true, 1, 20, COE_H100, false},
    {"table_v.overall.bs8.200.a100", 4.2, true, 8, 200, COE_A100, false},
    {"table_v.overall.bs8.200.h100", 2.7, true, 8, 200, COE_H100, false},
    {"table_v.overall.bs1.200.a100", 3.9, true, 1, 200, COE_A100, false},
    {"table_v.overall.bs1.200.h100", 2.6, true, 1, 200, COE_H100, false},
    {"table_v.expert.bs1.20.a100", 2.0, false, 1, 20, COE_A100, true},
    {"table_v.expert.bs1.20.h100", 1.5, false, 1, 20, COE_H100, false},
    {"table_v.expert.bs1.200.a100", 3.2, false, 1, 200, COE_A100, true},
    {"table_v.expert.bs1.200.h100", 2.3, false, 1, 200, COE_H100, true},
};

const enum rdu_chip_field coe_input_field[COE_INPUTS] = {RDU_CHIP_node_inference_fixed_s,
                                                         RDU_CHIP_efficiency_hbm_fused,
                                                         RDU_CHIP_efficiency_hbm_fused};
const int coe_input_chip[COE_INPUTS] = {COE_NODE, COE_A100, COE_H100};

static double inference_s(const struct coe *c, const struct rdu_chip *chip, double seqs, double output)
{
    return sim_inference_s(chip, c->shape, RDU_LEVEL_LOOPED, seqs, c->prompt, output);
}

double coe_batch_s(const struct coe *c, const struct rdu_chip *chip, double batch, double output)
{
    double places = coe_resident(c, chip, c->prompt + output, batch);
    double miss = BASE_MAX(1 - places / c->experts, 0); /* LRU, uniform choice */
    return inference_s(c, chip, batch, c->router_tokens) +
           batch * (miss * rdu_time_switch_s(chip, rdu_shape_bytes(c->shape)) +
                    inference_s(c, chip, 1, output));
}

double coe_cell_ratio(const struct coe *c, const struct coe_cell *cell)
{
    const struct rdu_chip *node = &c->chip[COE_NODE], *other = &c->chip[cell->against];
    if (cell->overall)
        return coe_batch_s(c, other, cell->batch, cell->output) /
               coe_batch_s(c, node, cell->batch, cell->output);
    return inference_s(c, other, 1, cell->output) / inference_s(c, node, 1, cell->output);
}

/* ---- least squares: Levenberg-Marquardt over three inputs ---- */

static void errors_at(struct coe *c, const double z[COE_INPUTS], const bool use[COE_CELLS],
                      double ret[COE_CELLS])
{
    for (int i = 0; i < COE_INPUTS; i++)
        *rdu_chip_value(&c->chip[coe_input_chip[i]], coe_input_field[i]) = z[i];
    for (int i = 0; i < COE_CELLS; i++)
        ret[i] = use[i] ? coe_cell_ratio(c, &coe_cells[i]) - coe_cells[i].published : 0;
}

static double squares(const double r[COE_CELLS])
{
    double sum = 0;
    for (int i = 0; i < COE_CELLS; i++)
        sum += r[i] * r[i];
    return sum;
}

/* Solves a x = b for three unknowns by elimination with pivots; false if a is singular. */
static bool solve(double a[COE_INPUTS][COE_INPUTS], double b[COE_INPUTS])
{
    for (int k = 0; k < COE_INPUTS; k++) {
        int pivot = k;
        for (int i = k + 1; i < COE_INPUTS; i++)
            if (fabs(a[i][k]) > fabs(a[pivot][k]))
                pivot = i;
        if (fabs(a[pivot][k]) < 1e-300)
            return false;
        for (int j = 0; j < COE_INPUTS; j++) {
            double swap = a[k][j];
            a[k][j] = a[pivot][j];
            a[pivot][j] = swap;
        }
        double swap = b[k];
        b[k] = b[pivot];
        b[pivot] = swap;
        for (int i = 0; i < COE_INPUTS; i++) {
            if (i == k)
                continue;
            double f = a[i][k] / a[k][k];
            for (int j = k; j < COE_INPUTS; j++)
                a[i][j] -= f * a[k][j];
            b[i] -= f * b[k];
        }
    }
    for (int k = 0; k < COE_INPUTS; k++)
        b[k] /= a[k][k];
    return true;
}

/* Steps are relative to the inputs' size, which differ by a factor of ten. */
static bool step(struct coe *c, const bool use[COE_CELLS], double z[COE_INPUTS], double damping)
{
    double r[COE_CELLS], moved[COE_CELLS], slope[COE_INPUTS][COE_CELLS];
    double a[COE_INPUTS][COE_INPUTS], b[COE_INPUTS], next[COE_INPUTS];
    errors_at(c, z, use, r);
    for (int i = 0; i < COE_INPUTS; i++) {
        memcpy(next, z, sizeof(next));
        next[i] *= 1 + 1e-5;
        errors_at(c, next, use, moved);
        for (int k = 0; k < COE_CELLS; k++)
            slope[i][k] = (moved[k] - r[k]) / 1e-5;
    }
    for (int i = 0; i < COE_INPUTS; i++) {
        b[i] = 0;
        for (int k = 0; k < COE_CELLS; k++)
            b[i] -= slope[i][k] * r[k];
        for (int j = 0; j < COE_INPUTS; j++) {
            a[i][j] = i == j ? damping : 0;
            for (int k = 0; k < COE_CELLS; k++)
                a[i][j] += slope[i][k] * slope[j][k];
        }
    }
    if (!solve(a, b))
        return false;
    for (int i = 0; i < COE_INPUTS; i++)
        next[i] = z[i] * BASE_MIN(BASE_MAX(1 + b[i], 0.5), 2.0);
    errors_at(c, next, use, moved);
    if (!(squares(moved) < squares(r)))
        return false;
    memcpy(z, next, sizeof(next));
    return true;
}

void coe_fit(const struct coe *c, const bool use[COE_CELLS], double ret[COE_INPUTS])
{
    static const double least[COE_INPUTS] = {1e-4, 0.01, 0.01}; /* where a zero in the file starts */
    struct coe own = *c;
    double damping = 1e-3;
    for (int i = 0; i < COE_INPUTS; i++)
        ret[i] = BASE_MAX(*rdu_chip_value(&own.chip[coe_input_chip[i]], coe_input_field[i]), least[i]);
    for (int i = 0; i < 60 && damping < 1e9; i++)
        damping *= step(&own, use, ret, damping) ? 0.2 : 8;
}

void coe_leave_one_out(const struct coe *c, double ret_error[COE_CELLS])
{
    for (int left = 0; left < COE_CELLS; left++) {
        struct coe own = *c;
        bool use[COE_CELLS], all[COE_CELLS];
        double z[COE_INPUTS], r[COE_CELLS];
        for (int i = 0; i < COE_CELLS; i++) {
            use[i] = i != left;
            all[i] = true;
        }
        coe_fit(c, use, z);
        errors_at(&own, z, all, r);
        ret_error[left] = r[left];
    }
}
