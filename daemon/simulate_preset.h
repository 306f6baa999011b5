/* The preset samba-coe: what the SN40L paper (arXiv 2405.07518) publishes of Samba-CoE, as rows of
 * published and modelled figures, and what it leaves out, as sweeps. All times are node time. Private to
 * daemon/. */
#ifndef SWITCHYARD_DAEMON_SIMULATE_PRESET_H
#define SWITCHYARD_DAEMON_SIMULATE_PRESET_H

#include "daemon/simulate.h"

/* paper: prompts one after the other, a copy stops everything. grouped: prompts of one expert share
 * steps. prefetch: and copies run beside other experts. overlap: and a step begins with the first layer. */
enum coe_mode { COE_PAPER, COE_GROUPED, COE_PREFETCH, COE_OVERLAP, COE_MODES };
const char *coe_mode_name(enum coe_mode m);
bool coe_mode_parse(const char *name, enum coe_mode *ret);

enum { COE_NODE, COE_A100, COE_H100, COE_CHIPS };

/* The inputs nobody publishes are taken as given and stated with every table. */
struct coe {
    struct rdu_chip chip[COE_CHIPS];
    const struct rdu_shape *shape; /* of the router and of every expert */
    enum coe_mode mode;
    uint32_t experts, prompt, router_tokens;
    uint32_t measured; /* prompts behind each overall cell of Table V */
};
/* The three chips as named; `files` replace them: one named like the A100 or H100 takes its place, any
 * other that of the node. */
enum err_code coe_init(struct coe *c, const char *const *files, size_t files_count, struct err *e)
    BASE_NODISCARD;

/* One point: batches of `batch` prompts, one after the other. */
struct coe_point {
    const struct rdu_chip *chip;
    enum coe_mode mode;
    uint32_t experts, batch, prompt, output, router_tokens, batches;
    double zipf;      /* exponent of the experts' popularity; 0 = uniform */
    double hbm_scale; /* of the chip's HBM */
};
struct coe_result {
    double batch_s;    /* mean, over the batches after the memory has filled */
    double miss_ratio; /* loads per prompt */
    bool out_of_memory; /* the experts do not fit the node's DDR */
};
enum err_code coe_measure(const struct coe *c, const struct coe_point *p, struct coe_result *ret,
                          struct err *e) BASE_NODISCARD;
/* How many experts stay in HBM beside the router and the KV of `batch` sequences; fit in DDR. */
uint32_t coe_resident(const struct coe *c, const struct rdu_chip *chip, double tokens, double batch);
uint32_t coe_storable(const struct coe *c, const struct rdu_chip *chip);

/* ---- Table V in closed form (simulate_fit.c) ---- */

enum { COE_CELLS = 12, COE_INPUTS = 3 };
struct coe_cell {
    const char *name;
    double published;
    bool overall; /* or the expert's inference alone */
    uint32_t batch, output;
    int against;  /* COE_A100 or COE_H100 */
    bool calibrates; /* one of the cells that the inputs are taken from */
};
extern const struct coe_cell coe_cells[COE_CELLS];
/* Expected time for one batch: router + copies of what is missing + the experts. */
double coe_batch_s(const struct coe *c, const struct rdu_chip *chip, double batch, double output);
double coe_cell_ratio(const struct coe *c, const struct coe_cell *cell);
/* The calibrated inputs of Table V: the node's fixed time, and each DGX's share of HBM peak. */
extern const enum rdu_chip_field coe_input_field[COE_INPUTS];
extern const int coe_input_chip[COE_INPUTS];
/* Values of the inputs that come closest to the cells in `use` (least squares); starts at c's. */
void coe_fit(const struct coe *c, const bool use[COE_CELLS], double ret[COE_INPUTS]);
/* modelled - published of each cell when the inputs are fitted to the other eleven. */
void coe_leave_one_out(const struct coe *c, double ret_error[COE_CELLS]);

/* ---- rows (simulate_preset.c) ---- */

struct coe_row {
    char name[56];
    double published, published_most; /* a range if most > 0 */
    double modelled;
    double tolerance; /* how near counts as reproduced, where there is no range */
    double left_out; /* leave-one-out error; NAN = not a cell of Table V */
    double exact;    /* before it is put on the paper's grid; NAN = modelled is it */
    bool calibrated;
    const char *note;
};
/* What the rows of Table III stand on that is not published; chosen so that its ranges can be met. */
#define COE_TABLE_III_GIVEN                                                                        \
    "64 sequences in a prefill and in training (Bloom 4), 1 in decode; sparse matrices at 0.25 of the dense rate"
struct coe_rows {
    struct coe_row *rows;
    size_t count;
};
enum err_code coe_rows(const struct coe *c, struct coe_rows *ret, struct err *e) BASE_NODISCARD;
void coe_rows_done(struct coe_rows *r);
/* Whether the modelled figure is what was published: within the range, or within the tolerance. */
bool coe_row_holds(const struct coe_row *r);

/* ---- sweeps (simulate_sweep.c) and their picture (simulate_plot.c) ---- */

struct coe_series {
    const char *name;
    int chip;
    double links; /* host links of a DGX that load shards in parallel */
    enum coe_mode mode;
};
struct coe_sweep {
    const char *name, *title, *x_label;
    double x[24];
    size_t count;
    bool log_x;
    double batch_ms[8][24]; /* [series][x]; NAN = out of memory */
    double miss[8][24];
};
enum { COE_SWEEPS = 6 };
extern const struct coe_series coe_series[];
extern const size_t coe_series_count;
enum err_code coe_sweeps(const struct coe *c, struct coe_sweep ret[COE_SWEEPS], struct err *e)
    BASE_NODISCARD;
void coe_sweeps_csv(const struct coe_sweep *s, struct buf *out);
void coe_sweeps_svg(const struct coe_sweep *s, struct buf *out);

#endif
