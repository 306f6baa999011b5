/* A file of requests as one pipeline, planned as a query is (Flare, arXiv 1703.08219, section 3:
 * see the whole job before running any of it):
 *
 *   scan -> validate -> route -> group by expert and length -> order groups -> generate -> restore
 * order -> sink
 *
 * A server answers requests as they come and must switch experts as they ask; a batch knows all of
 * them beforehand, so every expert's weights need to come in once. Private to daemon/; one thread
 * owns a plan. */
#ifndef SWITCHYARD_DAEMON_BATCH_H
#define SWITCHYARD_DAEMON_BATCH_H

#include "daemon/api.h"

/* One request of the input. */
struct batch_line {
    uint64_t offset; /* of its first byte in the input */
    uint32_t len;    /* bytes, without the line feed */
    uint32_t no;     /* counted from 1, empty lines too: what an editor shows */
    enum api_kind kind;
    char *custom_id;       /* owned; "line-N" for a bare body */
    struct expert *expert; /* NULL = a bad line, see `refusal` */
    enum router_reason reason;
    double confidence;
    uint32_t prompt_tokens, tokens; /* prompt; prompt and what it may generate */
    char *refusal;                  /* owned: {"error":...} of a bad line */
    int refusal_status;
    bool finished; /* an earlier run did it */
};

/* Lines of one expert that run one after another. */
struct batch_group {
    struct expert *expert;
    uint32_t first, count; /* in batch_plan.order */
    uint64_t tokens;
    uint64_t tokens_max; /* of its longest line */
    uint64_t load_bytes; /* planned: what is not in hbm when its turn comes */
    bool waited;         /* measured: one of its requests waited for a load */
};

/* What an order costs in memory traffic. */
struct batch_cost {
    uint64_t
        expert_loads; /* groups that find something missing; planned only: a prefetch hides them */
    uint64_t segment_loads;
    uint64_t bytes;
};

enum batch_order {
    BATCH_ORDER_PLANNED, /* an expert once: resident ones first, then by what they cost to load */
    BATCH_ORDER_ARRIVAL, /* as the file has them: what a server without a plan would do */
};

struct batch_plan {
    struct server *server;
    const char *input;
    int fd; /* of the input */
    uint64_t input_bytes;
    struct hash128 input_hash;
    struct batch_line *lines; /* [lines_count] in input order */
    size_t lines_count, bad_count, finished_count;
    uint32_t *order; /* [order_count] good, unfinished lines as they will run */
    size_t order_count;
    struct batch_group *groups; /* [groups_count] as they will run */
    size_t groups_count;
    size_t experts_used;
    enum batch_order order_kind;
    struct batch_cost planned, arrival; /* of `order`, and of the file's own order */
    uint64_t read_ns, route_ns,
        order_ns; /* scan and validate; of which in the router; group and order */
};

/* Scan, validate, route. The input may not change until the plan is closed. Errors are those of the
 * file itself; a bad line is kept as such. */
enum err_code batch_plan_open(struct server *s, const char *input, const struct progress *p,
                              struct batch_plan *ret, struct err *e) BASE_NODISCARD;
/* Group and order what is neither bad nor finished, and say what that costs. Reads which segments
 * are resident: call before the engine gets work. */
void batch_plan_order(struct batch_plan *p, enum batch_order kind);
void batch_plan_close(struct batch_plan *p);
/* The call of one line, ready to submit: same expert as planned. `text` is scratch. */
enum err_code batch_line_call(struct batch_plan *p, const struct batch_line *l,
                              struct router_scratch *scratch, struct buf *text,
                              struct api_call **ret, struct err *e) BASE_NODISCARD;

/* batch_cost.c: loads when `groups` run one after another, the least recently used segments leaving
 * when room is short; fills in load_bytes of each. */
void batch_cost_of(struct server *s, struct batch_group *groups, size_t count,
                   struct batch_cost *ret);
/* May both run at once without either's weights being driven out? */
bool batch_cost_fits(struct server *s, const struct batch_group *a, const struct batch_group *b);

/* ---- batch_journal.c: what is finished, kept until all is
 * --------------------------------------------- */

/* OUT.partial: a head line that names the input, then a line per finished request, appended. A torn
 * last line is what a kill leaves: it is cut off. */
struct batch_journal {
    FILE *file;
    char *path;
    uint64_t end; /* bytes appended and whole */
    uint64_t synced_ns;
    struct batch_entry {
        uint64_t offset;
        uint32_t len;
        bool failed, there;
    } * entries; /* [lines_count] of the plan */
};
/* Opens or makes the journal of `output`, and marks what it has as finished in the plan.
 * ERR_EXISTS: it belongs to another input. */
enum err_code batch_journal_open(const char *output, struct batch_plan *p,
                                 struct batch_journal *ret, struct err *e) BASE_NODISCARD;
/* One finished line: its JSON, without line feed. */
enum err_code batch_journal_add(struct batch_journal *j, struct batch_plan *p, uint32_t line_idx,
                                bool failed, const struct buf *json, struct err *e) BASE_NODISCARD;
/* Restore the input's order: OUT gets the answers, `errors` the bad and failed lines (no such file
 * if there are none), both replaced whole; then the journal is removed. */
enum err_code batch_journal_finish(struct batch_journal *j, const struct batch_plan *p,
                                   const char *output, const char *errors,
                                   struct err *e) BASE_NODISCARD;
void batch_journal_close(struct batch_journal *j); /* keeps the file */

/* ---- batch_run.c: generate
 * ------------------------------------------------------------------------------ */

struct batch_result {
    uint64_t done, failed;
    uint64_t prompt_tokens, completion_tokens;
    uint64_t host_ns;
    struct batch_cost measured;
};
enum err_code batch_run(struct batch_plan *p, struct batch_journal *j,
                        const struct progress *progress, struct batch_result *ret,
                        struct err *e) BASE_NODISCARD;

#endif
