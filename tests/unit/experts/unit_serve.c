/* See unit_serve.h. */
#include "tests/unit/experts/unit_serve.h"

#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define STEP_TOKENS 64
#define GAP_MIN 0.002

enum err_code unit_server_open(struct unit_server *s, struct memtier_store *store, struct err *e)
{
    const struct memtier_options mo = {.hbm_bytes = 32 * BASE_MIB,
                                       .loader = MEMTIER_LOADER_BUFFERED};
    const struct rdu_node_options no = {.sockets = 1, .threads = 1, .max_tokens = STEP_TOKENS};
    *s = (struct unit_server){0};
    enum err_code rc = memtier_open(&mo, store, &s->memtier, e);
    if (rc == ERR_OK)
        rc = rdu_node_open(&no, &s->node, e);
    const struct experts_options xo = {.store = store,
                                       .memtier = s->memtier,
                                       .node = s->node,
                                       .numerics = RDU_NUMERICS_F32,
                                       .exec = RDU_EXEC_FUSED,
                                       .kv_type = EXPERT_KV_F32,
                                       .max_step_tokens = STEP_TOKENS,
                                       .max_step_items = 2,
                                       .max_steps = 1};
    return rc == ERR_OK ? experts_open(&xo, &s->experts, e) : rc;
}

void unit_server_close(struct unit_server *s)
{
    experts_close(&s->experts);
    rdu_node_close(&s->node);
    memtier_close(&s->memtier);
}

static enum err_code run_step(struct unit_server *s, struct sequence *seq, struct err *e)
{
    struct expert_step *step = NULL;
    size_t pending = sequence_pending(seq);
    const struct step_item item = {seq, (uint32_t)BASE_MIN(pending, (size_t)STEP_TOKENS)};
    enum err_code rc = expert_step_open(s->experts, &item, 1, &step, e);
    if (rc != ERR_OK)
        return rc;
    enum step_state state;
    while ((state = expert_step_advance(step, e)) == STEP_BLOCKED) {
        struct pollfd fd = {.fd = memtier_fd(s->memtier), .events = POLLIN};
        poll(&fd, 1, 100);
        memtier_poll(s->memtier);
    }
    expert_step_close(&step);
    return state == STEP_DONE ? ERR_OK : e->code;
}

static enum err_code generate(struct unit_server *s, struct expert *ex,
                              const struct token_list *prompt, uint32_t count, struct err *e)
{
    struct sequence *seq = NULL;
    struct sequence_options opt = {
        .expert = ex, .tokens = prompt->ids, .tokens_count = prompt->count, .max_tokens = count};
    int32_t vocab = tokenizer_vocab(expert_tokenizer(ex));
    sampling_init(&opt.sampling);
    opt.sampling.temperature = 0;
    enum err_code rc = sequence_open(s->experts, &opt, &seq, e);
    while (rc == ERR_OK && !sequence_done(seq, NULL)) {
        size_t before = sequence_generated(seq);
        rc = run_step(s, seq, e);
        int32_t id = sequence_last_token(seq);
        if (rc == ERR_OK && sequence_generated(seq) > before && (id < 0 || id >= vocab))
            rc = err_set(e, ERR_INTERNAL, "token %d is outside the vocabulary", id);
    }
    sequence_close(&seq);
    return rc;
}

static enum err_code say(struct unit_server *s, struct expert *ex, const char *text, size_t len,
                         uint32_t count, struct err *e)
{
    struct token_list prompt = {0};
    enum err_code rc = tokenizer_encode(expert_tokenizer(ex), text, len, true, &prompt, e);
    if (rc == ERR_OK && prompt.count > 0)
        rc = generate(s, ex, &prompt, count, e);
    free(prompt.ids);
    return rc;
}

enum err_code unit_server_say(struct unit_server *s, struct expert *ex, const char *text,
                              uint32_t count, struct err *e)
{
    if (!expert_ok(ex, e))
        return e->code;
    enum err_code rc = say(s, ex, text, strlen(text), count, e);
    const struct chat_template *t = expert_template(ex);
    if (rc != ERR_OK || !t)
        return rc;
    struct buf out = {0};
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", text);
    char *json = json_dumps(messages, 0);
    const struct template_input in = {
        .messages_json = json, .add_generation_prompt = true, .bos_token = "", .eos_token = ""};
    rc = template_render(t, &in, &out, e);
    if (rc == ERR_OK && out.len)
        rc = say(s, ex, out.data, out.len, count, e);
    buf_done(&out);
    free(json);
    json_decref(messages);
    return rc;
}

/* ---- golden tokens ---- */

static size_t take_ids(const json_t *list, int32_t *ids, size_t cap)
{
    size_t n = BASE_MIN(json_array_size(list), cap);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return n;
}

static int32_t best_of(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

static enum err_code check_line(struct unit_server *s, struct expert *ex, const json_t *line,
                                size_t count, struct err *e)
{
    int32_t ids[256];
    const json_t *gaps = json_object_get(line, "gaps"), *greedy = json_object_get(line, "greedy");
    size_t n = take_ids(json_object_get(line, "ids"), ids, BASE_COUNT(ids) - count);
    size_t m = take_ids(greedy, ids + n, count);
    size_t vocab = (size_t)tokenizer_vocab(expert_tokenizer(ex));
    struct token_list own = {0};
    const char *text = json_string_value(json_object_get(line, "text"));
    enum err_code rc = tokenizer_encode(expert_tokenizer(ex), text, strlen(text), true, &own, e);
    if (rc == ERR_OK && (own.count != n || memcmp(own.ids, ids, n * sizeof(ids[0])) != 0))
        rc = err_set(e, ERR_INTERNAL, "'%s' gives other tokens than the golden ones", text);
    free(own.ids);
    float *logits = mem_array((n + m) * vocab, sizeof(*logits));
    if (rc == ERR_OK)
        rc = experts_logits(s->experts, ex, ids, n + m, true, 0, logits, e);
    for (size_t i = 0; i < m && rc == ERR_OK; i++) {
        int32_t best = best_of(logits + (n - 1 + i) * vocab, vocab);
        if (best != ids[n + i] && json_number_value(json_array_get(gaps, i)) > GAP_MIN)
            rc = err_set(e, ERR_INTERNAL, "'%s': token %zu is %d instead of %d", text, i, best,
                         ids[n + i]);
    }
    free(logits);
    return rc;
}

enum err_code unit_server_golden(struct unit_server *s, struct expert *ex, const char *golden_path,
                                 const char *model, size_t count, struct err *e)
{
    struct buf file = {0};
    size_t lines = 0;
    enum err_code rc = file_read(golden_path, 16 * BASE_MIB, &file, e);
    for (char *p = file.data; rc == ERR_OK && p && *p;) {
        char *end = strchr(p, '\n');
        size_t len = end ? (size_t)(end - p) : strlen(p);
        json_t *line = json_loadb(p, len, 0, NULL);
        const char *name = json_string_value(json_object_get(line, "model"));
        if (name && strcmp(name, model) == 0) {
            rc = check_line(s, ex, line, count, e);
            lines++;
        }
        json_decref(line);
        p = end ? end + 1 : NULL;
    }
    buf_done(&file);
    if (rc == ERR_OK && lines == 0)
        rc = err_set(e, ERR_INTERNAL, "%s has no lines for %s", golden_path, model);
    return rc;
}
