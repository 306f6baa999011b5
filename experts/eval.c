/* Direct evaluation of a token list: logits for tests, perplexity, explain. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "experts/serve.h"

/* Rows of logits that a step holds at least (steps_open). */
#define EVAL_CHUNK 32

/* What does not fit now may fit when the loader is through: copies to ddr still read their source. */
static enum err_code open_patiently(struct experts *x, const struct step_item *item, bool all_outs,
                                    struct expert_step **ret, struct err *e)
{
    for (;;) {
        struct memtier_stats st;
        enum err_code code = step_open_eval(x, item, 1, all_outs, ret, e);
        memtier_stats(x->opt.memtier, &st);
        if (code != ERR_BUSY || st.jobs_out == 0)
            return code;
        struct pollfd fd = {.fd = memtier_fd(x->opt.memtier), .events = POLLIN};
        poll(&fd, 1, 100);
        memtier_poll(x->opt.memtier);
    }
}

static enum err_code run_to_end(struct experts *x, struct expert_step *step, struct err *e)
{
    for (;;) {
        enum step_state state = expert_step_advance(step, e);
        if (state == STEP_DONE)
            return ERR_OK;
        if (state == STEP_FAILED)
            return e ? e->code : ERR_LOAD_FAILED;
        struct pollfd fd = {.fd = memtier_fd(x->opt.memtier), .events = POLLIN};
        poll(&fd, 1, 100);
    }
}

static enum err_code run_chunk(struct experts *x, struct sequence *seq, uint32_t n, bool all, float *logits,
                               struct err *e)
{
    struct expert_step *step = NULL;
    struct step_item item = {seq, n};
    size_t vocab = rdu_program_vocab(seq->expert->base->program);
    bool last = sequence_pending(seq) == n;
    bool want_all = all && logits;
    enum err_code code = open_patiently(x, &item, want_all, &step, e);
    if (code != ERR_OK)
        return code;
    code = run_to_end(x, step, e);
    for (uint32_t i = 0; code == ERR_OK && want_all && i < n; i++)
        memcpy(logits + (seq->run_count - n + i) * vocab, step_logits(step, i), vocab * sizeof(float));
    if (code == ERR_OK && !want_all && last)
        memcpy(logits, step_logits(step, 0), vocab * sizeof(float));
    expert_step_close(&step);
    return code;
}

enum err_code experts_logits(struct experts *x, struct expert *ex, const int32_t *tokens, size_t count,
                             bool all, uint32_t chunk, float *logits, struct err *e)
{
    struct sequence *seq = NULL;
    struct sequence_options opt = {.expert = ex, .tokens = tokens, .tokens_count = count};
    sampling_init(&opt.sampling);
    enum err_code code = sequence_open(x, &opt, &seq, e);
    uint32_t most = all ? BASE_MIN(EVAL_CHUNK, x->opt.max_step_tokens) : x->opt.max_step_tokens;
    chunk = chunk == 0 ? most : BASE_MIN(chunk, most);
    while (code == ERR_OK && sequence_pending(seq) > 0) {
        uint32_t n = (uint32_t)BASE_MIN(sequence_pending(seq), chunk);
        code = run_chunk(x, seq, n, all, logits, e);
    }
    sequence_close(&seq);
    return code;
}
