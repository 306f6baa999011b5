/* What a configuration's memory budgets come to: what fits where, what a switch costs, and what
 * cannot work, with numbers. Looks into the store, opens nothing for serving. Private to daemon/.
 */
#ifndef SWITCHYARD_DAEMON_PLAN_H
#define SWITCHYARD_DAEMON_PLAN_H

#include "conf/conf.h"
#include "experts/experts.h"

#define PLAN_KV_TOKENS 1024 /* what the largest expert must be able to run beside its weights */

struct plan_expert {
    char *name;
    bool held, is_adapter;
    uint64_t own_bytes;   /* of its own weights or adapter */
    uint64_t footprint;   /* of hbm, with the base it sits on */
    uint64_t beside_held; /* what it adds to what is held */
};
struct plan {
    uint64_t machine, hbm, ddr, nvme, store, held, all, kv_token_bytes;
    bool hbm_automatic;
    struct plan_expert *experts; /* by name */
    size_t count;
    size_t largest;          /* index of the one that adds most to what is held */
    double load_bytes_per_s; /* of the device, if it was measured; else 0 */
    struct err refusal;      /* code ERR_OK = it can work */
};
/* `generalist`: held whatever the configuration says, where there is room; NULL = none. `measure`:
 * read a few MiB to know what a load costs. ERR_* when the store cannot be read; a plan that cannot
 * work is in ret->refusal. */
enum err_code plan_make(const struct conf *c, bool measure, struct plan *ret,
                        struct err *e) BASE_NODISCARD;
void plan_done(struct plan *p);
void plan_put_text(const struct plan *p, struct buf *out);
void plan_put_json(const struct plan *p, struct buf *out);

#endif
