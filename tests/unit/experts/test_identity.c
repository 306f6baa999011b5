/* The same logits, bit for bit, however a sequence is run: alone or in a batch, in any chunks, with
 * pages of others, copies of them or none, after giving its pages back, guessed ahead, on one or
 * two threads, one to eight sockets, and before and after its weights were dropped and loaded
 * again. 200 mixes over the tiny models and a few over a real one, each against the sequence run
 * alone, in one piece, on one thread and one socket. */
#include "tests/unit/experts/unit.h"

#include <poll.h>

#include "experts/serve.h"

#define STEP_TOKENS 160
#define ANSWER 6
#define LANES 5

struct server {
    struct memtier *memtier;
    struct rdu_node *node;
    struct experts *experts;
};

struct setting {
    uint32_t sockets, threads, page_tokens;
    enum rdu_numerics numerics;
    enum expert_kv_type kv;
};

static void server_open(struct server *s, struct memtier_store *store, const struct setting *c)
{
    struct err e = {0};
    const struct memtier_options mo = {.hbm_bytes = 320 * BASE_MIB,
                                       .loader = MEMTIER_LOADER_BUFFERED};
    const struct rdu_node_options no = {.sockets = c->sockets, .threads = c->threads};
    unit_ok(memtier_open(&mo, store, &s->memtier, &e), &e);
    unit_ok(rdu_node_open(&no, &s->node, &e), &e);
    const struct experts_options xo = {.store = store,
                                       .memtier = s->memtier,
                                       .node = s->node,
                                       .numerics = c->numerics,
                                       .exec = RDU_EXEC_FUSED,
                                       .kv_type = c->kv,
                                       .kv_page_tokens = c->page_tokens,
                                       .max_step_tokens = STEP_TOKENS,
                                       .max_step_items = LANES,
                                       .max_steps = 1};
    unit_ok(experts_open(&xo, &s->experts, &e), &e);
}

static void server_close(struct server *s)
{
    experts_close(&s->experts);
    rdu_node_close(&s->node);
    memtier_close(&s->memtier);
}

/* ---- one sequence as it should be
 * ---------------------------------------------------------------------------- */

struct timeline {
    const char *expert;
    int32_t prompt[256];
    uint32_t prompt_count;
    float temperature;
    uint64_t seed;
    float *logits; /* [ANSWER, vocab] of the reference */
    int32_t answer[ANSWER];
    uint32_t vocab;
    struct sequence *seq; /* in the mix */
    uint32_t seen;
};

static struct sequence *open_one(struct server *s, const struct timeline *t, bool cache)
{
    struct err e = {0};
    struct sequence *seq = NULL;
    struct sequence_options o = {.expert = experts_find(s->experts, t->expert),
                                 .tokens = t->prompt,
                                 .tokens_count = t->prompt_count,
                                 .max_tokens = ANSWER,
                                 .cache = cache};
    assert_non_null(o.expert);
    sampling_init(&o.sampling);
    o.sampling.temperature = t->temperature;
    o.sampling.seed = t->seed;
    o.sampling.ignore_eos = true;
    unit_ok(sequence_open(s->experts, &o, &seq, &e), &e);
    return seq;
}

static struct expert_step *run_step(struct server *s, const struct step_item *items, size_t count)
{
    struct err e = {0};
    struct expert_step *step = NULL;
    enum step_state state;
    unit_ok(expert_step_open(s->experts, items, count, &step, &e), &e);
    while ((state = expert_step_advance(step, &e)) == STEP_BLOCKED) {
        struct pollfd fd = {.fd = memtier_fd(s->memtier), .events = POLLIN};
        poll(&fd, 1, 100);
    }
    if (state != STEP_DONE)
        fail_msg("%s", e.msg);
    return step;
}

static void run_reference(struct server *s, struct timeline *t)
{
    struct sequence *seq = open_one(s, t, false);
    t->vocab = rdu_program_vocab(expert_program(sequence_expert(seq)));
    t->logits = mem_array((size_t)ANSWER * t->vocab, sizeof(float));
    for (uint32_t i = 0; i < ANSWER;) {
        const struct step_item item = {
            seq, (uint32_t)BASE_MIN(sequence_pending(seq), (size_t)STEP_TOKENS)};
        struct expert_step *step = run_step(s, &item, 1);
        const float *row = step_logits_of(step, seq);
        if (row) {
            memcpy(t->logits + (size_t)i * t->vocab, row, t->vocab * sizeof(float));
            t->answer[i++] = sequence_last_token(seq);
        }
        expert_step_close(&step);
    }
    sequence_close(&seq);
}

/* ---- mixes
 * ------------------------------------------------------------------------------------------------------
 */

struct mix {
    struct server *server, *reference;
    struct rng r;
    uint64_t seed;
    const char *const *family; /* experts of one base, NULL at the end */
    uint32_t prompt_max;
    uint64_t reused, accepted, yielded, together;
};

/* Prompts begin with one of three texts, so that pages are shared within a mix and with mixes
 * before. Some repeat themselves, so that there is something to guess. */
static void make_timeline(struct mix *m, struct timeline *t)
{
    uint32_t families = 0, text = (uint32_t)rng_below(&m->r, 3);
    while (m->family[families])
        families++;
    *t = (struct timeline){.expert = m->family[rng_below(&m->r, families)], .seed = rng_u64(&m->r)};
    t->prompt_count = 1 + (uint32_t)rng_below(&m->r, m->prompt_max);
    t->temperature = rng_below(&m->r, 2) ? 0 : 1.3f;
    uint32_t shared = (uint32_t)rng_below(&m->r, t->prompt_count + 1),
             period = 2 + (uint32_t)rng_below(&m->r, 5);
    bool repeats = rng_below(&m->r, 3) == 0;
    for (uint32_t i = 0; i < t->prompt_count; i++) {
        t->prompt[i] = (int32_t)(10 + (text * 131 + i * i * 7 + i) % 440);
        if (i >= shared)
            t->prompt[i] = (int32_t)(10 + rng_below(&m->r, 440));
        if (repeats && i >= period)
            t->prompt[i] = t->prompt[i - period];
    }
}

static void check_row(struct mix *m, struct timeline *t, const float *row)
{
    if (memcmp(row, t->logits + (size_t)t->seen * t->vocab, t->vocab * sizeof(float)) != 0)
        fail_msg("seed %llu: other logits for token %u of %s after %u prompt tokens",
                 (unsigned long long)m->seed, t->seen, t->expert, t->prompt_count);
}

static void check_answer(struct mix *m, struct timeline *t)
{
    for (; t->seen < sequence_generated(t->seq); t->seen++)
        if (sequence_answer(t->seq, t->seen) != t->answer[t->seen])
            fail_msg("seed %llu: token %u of %s differs", (unsigned long long)m->seed, t->seen,
                     t->expert);
}

/* Guesses of which the first are right. */
static void guess_well(struct mix *m, struct timeline *t)
{
    size_t left = ANSWER - sequence_generated(t->seq);
    t->seq->draft_count = 0;
    while (t->seq->draft_count + 1 < left && rng_below(&m->r, 4) > 0) {
        uint32_t i = t->seq->draft_count++;
        t->seq->draft[i] = t->answer[t->seen + i] + (rng_below(&m->r, 5) == 0);
    }
}

/* What may happen to a sequence between two steps. */
static void disturb(struct mix *m, struct timeline *t, const struct timeline *all, uint32_t count)
{
    struct sequence *from = all[rng_below(&m->r, count)].seq;
    if (rng_below(&m->r, 12) == 0 && sequence_tokens(t->seq) > sequence_pending(t->seq)) {
        sequence_yield(t->seq);
        m->yielded++;
    }
    if (from != t->seq && rng_below(&m->r, 4) == 0)
        m->reused += sequence_fork(t->seq, from);
    if (rng_below(&m->r, 3) > 0)
        m->reused += sequence_adopt(t->seq);
    if (rng_below(&m->r, 2))
        (void)sequence_draft(t->seq, 1 + (uint32_t)rng_below(&m->r, SEQUENCE_DRAFT_MAX));
    else
        guess_well(m, t);
}

static void one_step(struct mix *m, struct timeline *t, uint32_t count)
{
    struct step_item items[LANES];
    struct timeline *who[LANES];
    struct step_stats st;
    uint32_t n = 0, left = STEP_TOKENS;
    for (uint32_t i = 0; i < count; i++) {
        if (sequence_done(t[i].seq, NULL) || (rng_below(&m->r, 3) == 0 && i + 1 < count))
            continue;
        disturb(m, &t[i], t, count);
        uint32_t most = (uint32_t)BASE_MIN(sequence_pending(t[i].seq), left);
        if (most == 0)
            continue;
        uint32_t tokens = rng_below(&m->r, 3) ? most : 1 + (uint32_t)rng_below(&m->r, most);
        who[n] = &t[i];
        items[n++] = (struct step_item){t[i].seq, tokens};
        left -= tokens;
    }
    if (n == 0)
        return;
    struct expert_step *step = run_step(m->server, items, n);
    expert_step_stats(step, &st);
    m->accepted += st.accepted;
    m->together += n > 1;
    for (uint32_t i = 0; i < n; i++) {
        const float *row = step_logits_of(step, who[i]->seq);
        if (row)
            check_row(m, who[i], row);
    }
    expert_step_close(&step);
    for (uint32_t i = 0; i < n; i++)
        check_answer(m, who[i]);
}

static bool all_done(const struct timeline *t, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!sequence_done(t[i].seq, NULL))
            return false;
    return true;
}

/* Everything that is resident goes, pages and weights. */
static void drop_all(struct mix *m)
{
    size_t count;
    for (size_t i = 0; i < experts_count(m->server->experts); i++) {
        const uint32_t *segs = expert_segments(experts_at(m->server->experts, i), &count);
        (void)memtier_drop(m->server->memtier, segs, count, false);
    }
}

static void run_mix(struct mix *m)
{
    struct timeline t[LANES];
    uint32_t count = 1 + (uint32_t)rng_below(&m->r, LANES);
    for (uint32_t i = 0; i < count; i++) {
        make_timeline(m, &t[i]);
        run_reference(m->reference, &t[i]);
        t[i].seq = open_one(m->server, &t[i], rng_below(&m->r, 4) > 0);
    }
    while (!all_done(t, count)) {
        if (rng_below(&m->r, 20) == 0)
            drop_all(m);
        one_step(m, t, count);
    }
    for (uint32_t i = 0; i < count; i++) {
        sequence_close(&t[i].seq);
        free(t[i].logits);
    }
}

static const char *const llama[] = {"llama", "upper", "psalms", "llama", NULL},
                         *const qwen2[] = {"qwen2", NULL}, *const qwen3[] = {"qwen3", NULL},
                         *const gemma2[] = {"gemma2", NULL}, *const real[] = {"real", NULL};
static const char *const *const families[] = {llama, llama, qwen2, qwen3, gemma2};

static struct setting random_setting(struct rng *r)
{
    struct setting c = {.threads = 1 + (uint32_t)rng_below(r, 2),
                        .page_tokens = rng_below(r, 3) ? 32 : 64,
                        .numerics = rng_below(r, 2) ? RDU_NUMERICS_INT8 : RDU_NUMERICS_F32,
                        .kv = (enum expert_kv_type)rng_below(r, 3)};
    c.sockets = c.threads + (uint32_t)rng_below(r, 9 - c.threads);
    return c;
}

static void add_files(struct memtier_store *store)
{
    static const char *const files[][3] = {{"tiny/tiny-llama-q4_1.gguf", "llama", NULL},
                                           {"tiny/tiny-qwen2-q8_0.gguf", "qwen2", NULL},
                                           {"tiny/tiny-qwen3-q8_0.gguf", "qwen3", NULL},
                                           {"tiny/tiny-gemma2-q8_0.gguf", "gemma2", NULL},
                                           {"tiny/lora-upper.gguf", "upper", "llama"},
                                           {"tiny/lora-psalms.gguf", "psalms", "llama"}};
    for (size_t i = 0; i < BASE_COUNT(files); i++) {
        struct expert_add_report report;
        struct err e = {0};
        char *path = unit_data(files[i][0]);
        unit_ok(unit_add(store, path, files[i][1], files[i][2], &report, &e), &e);
        free(path);
    }
}

/* `mixes` of them, a new setting every ten. */
static void run_mixes(struct memtier_store *store, struct mix *m, uint32_t mixes)
{
    struct server server, reference;
    for (uint32_t i = 0; i < mixes; i++) {
        if (i % 10 == 0) {
            struct setting c = random_setting(&m->r), alone = c;
            alone.sockets = alone.threads = 1;
            server_open(&server, store, &c);
            server_open(&reference, store, &alone);
            m->server = &server;
            m->reference = &reference;
        }
        if (m->family != real)
            m->family = families[rng_below(&m->r, BASE_COUNT(families))];
        run_mix(m);
        if (i % 10 == 9 || i + 1 == mixes) {
            server_close(&server);
            server_close(&reference);
        }
    }
}

static void logits_do_not_depend_on_how_a_sequence_is_run(void **state)
{
    char *dir = unit_dir_open();
    struct memtier_store *store = unit_store(dir, MEMTIER_WRITE);
    struct mix m = {.seed = unit_seed(), .prompt_max = 150};
    add_files(store);
    memtier_store_close(&store);
    store = unit_store(dir, MEMTIER_SERVE);
    rng_init(&m.r, m.seed);
    run_mixes(store, &m, 200);
    print_message("200 mixes: %llu tokens reused, %llu guesses right, %llu sequences gave their "
                  "pages back, %llu steps "
                  "of several\n",
                  (unsigned long long)m.reused, (unsigned long long)m.accepted,
                  (unsigned long long)m.yielded, (unsigned long long)m.together);
    /* Each way has been gone. */
    assert_true(m.reused > 1000 && m.accepted > 50 && m.yielded > 20 && m.together > 200);
    memtier_store_close(&store);
    unit_dir_close(&dir);
}

static void nor_do_those_of_a_real_model(void **state)
{
    const char *path = getenv("SWITCHYARD_MODEL");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    path = NULL; /* minutes, for what the tiny models show as well */
#endif
    if (path == NULL || *path == 0) {
        print_message("skipped: SWITCHYARD_MODEL names no file\n");
        skip();
    }
    char *dir = unit_dir_open();
    struct err e = {0};
    struct expert_add_report report;
    struct memtier_store *store = unit_store(dir, MEMTIER_WRITE);
    struct mix m = {.seed = unit_seed(), .prompt_max = 70, .family = real};
    unit_ok(unit_add(store, path, "real", NULL, &report, &e), &e);
    memtier_store_close(&store);
    store = unit_store(dir, MEMTIER_SERVE);
    rng_init(&m.r, m.seed + 1);
    run_mixes(store, &m, 5);
    memtier_store_close(&store);
    unit_dir_close(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_do_not_depend_on_how_a_sequence_is_run),
        cmocka_unit_test(nor_do_those_of_a_real_model),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
