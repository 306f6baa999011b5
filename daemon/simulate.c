/* The event loop: arrivals, loads and steps on node time. Steps are decided one by one by sched_next, as
 * in the engine; where it would only go round among the same resident experts, the rounds until the next
 * event are taken at once, with the same result. */
#include "daemon/simulate.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/sched.h"

struct lane {
    uint32_t request; /* UINT32_MAX = free */
    uint32_t done;    /* tokens of the prompt that are in */
    uint32_t left;    /* output tokens to come */
    uint32_t context;
    uint64_t wait_ns; /* since when it waits for weights; UINT64_MAX = it does not */
    uint64_t kv_bytes;
    uint32_t next;    /* lane of the same base, UINT32_MAX = last */
};

/* A base of the scheduler's view: an expert with at least one lane. */
struct base {
    uint32_t expert, first_lane, lanes, prefilling;
};

struct sim {
    struct sim_options opt;
    struct rdu_pass_plan plan;
    struct sim_memory memory;
    struct sim_request *requests;
    uint32_t *next_same; /* the next request for the same expert */
    uint32_t *head_same, *tail_same; /* [experts] its first request that is not done, its last */
    size_t count, cap, arrived, admitted; /* requests: submitted, taken notice of, given a lane */
    uint32_t *served;    /* experts in the order in which requests got their first step */
    size_t served_count;
    struct lane *lanes;  /* [opt.lanes] */
    uint32_t running;
    struct base *bases;  /* [opt.lanes], rebuilt for each decision */
    struct sched_base *view;
    uint32_t *slot, *stamp, stamp_now; /* [experts] its base, if the stamp is current */
    uint32_t last_expert;
    uint64_t now_ns, wake_ns;
    struct sim_totals totals;
    void (*done)(void *ctx, struct sim *s, const struct sim_request *r);
    void *ctx;
};

/* ---- opening ---- */

static enum err_code check_options(const struct sim_options *opt, struct err *e)
{
    if (opt->experts == 0 || opt->expert_bytes == 0)
        return err_set(e, ERR_INVALID, "there must be at least one expert of at least one byte");
    if (opt->lanes == 0 || opt->lanes > SIM_LANES_MAX)
        return err_set(e, ERR_INVALID, "sequences at once must be 1 to %d", SIM_LANES_MAX);
    if (strcmp(opt->policy, "belady") != 0 && policy_find(opt->policy) == NULL)
        return err_set_param(e, ERR_INVALID, "policy",
                             "there is no policy '%s'; known are lru, gdsf and belady", opt->policy);
    uint64_t need = opt->expert_bytes * (opt->hold == UINT32_MAX ? 1 : 2);
    if (opt->hbm_bytes < need) {
        char have[32], want[32];
        return err_set(e, ERR_NO_MEMORY, "hbm of %s does not hold %s: give more, or smaller experts",
                       size_format(opt->hbm_bytes, have, sizeof(have)),
                       size_format(need, want, sizeof(want)));
    }
    return ERR_OK;
}

static void open_memory(struct sim *s)
{
    struct sim_memory *m = &s->memory;
    const struct sim_options *opt = &s->opt;
    double rate = opt->load_bytes_per_s > 0 ? opt->load_bytes_per_s : opt->chip->node_d2h_bytes_per_s;
    *m = (struct sim_memory){.count = opt->experts,
                             .expert_bytes = opt->expert_bytes,
                             .capacity = opt->hbm_bytes,
                             .policy = policy_find(opt->policy),
                             .load_s = (double)opt->expert_bytes / rate + opt->chip->node_switch_fixed_s};
    m->experts = mem_array(opt->experts, sizeof(*m->experts));
    m->resident = mem_array(opt->experts, sizeof(*m->resident));
    for (uint32_t i = 0; i < opt->experts; i++)
        m->experts[i].next_use = UINT64_MAX;
    if (opt->hold == UINT32_MAX)
        return;
    m->experts[opt->hold].place = SIM_RESIDENT;
    m->experts[opt->hold].held = true;
    m->resident[m->resident_count++] = opt->hold;
    m->used = opt->expert_bytes;
}

enum err_code sim_open(const struct sim_options *opt, struct sim **ret, struct err *e)
{
    enum err_code code = check_options(opt, e);
    if (code != ERR_OK)
        return code;
    struct sim *s = mem_alloc(sizeof(*s));
    s->opt = *opt;
    rdu_pass_plan_init(&s->plan, opt->chip, opt->shape, opt->level);
    open_memory(s);
    s->lanes = mem_array(opt->lanes, sizeof(*s->lanes));
    s->bases = mem_array(opt->lanes, sizeof(*s->bases));
    s->view = mem_array(opt->lanes, sizeof(*s->view));
    s->slot = mem_array(opt->experts, sizeof(*s->slot));
    s->stamp = mem_array(opt->experts, sizeof(*s->stamp));
    s->head_same = mem_array(opt->experts, sizeof(*s->head_same));
    s->tail_same = mem_array(opt->experts, sizeof(*s->tail_same));
    memset(s->head_same, 0xff, opt->experts * sizeof(*s->head_same));
    memset(s->tail_same, 0xff, opt->experts * sizeof(*s->tail_same));
    for (uint32_t i = 0; i < opt->lanes; i++)
        s->lanes[i].request = UINT32_MAX;
    s->last_expert = UINT32_MAX;
    *ret = s;
    return ERR_OK;
}

void sim_close(struct sim **sp)
{
    struct sim *s = *sp;
    if (s == NULL)
        return;
    free(s->memory.experts);
    free(s->memory.resident);
    free(s->requests);
    free(s->next_same);
    free(s->head_same);
    free(s->tail_same);
    free(s->served);
    free(s->lanes);
    free(s->bases);
    free(s->view);
    free(s->slot);
    free(s->stamp);
    free(s);
    *sp = NULL;
}

void sim_submit(struct sim *s, const struct sim_request *r)
{
    if (s->count == s->cap) {
        s->cap = s->cap * 2 + 1024;
        s->requests = mem_grow(s->requests, s->cap, sizeof(*s->requests));
        s->next_same = mem_grow(s->next_same, s->cap, sizeof(*s->next_same));
        s->served = mem_grow(s->served, s->cap, sizeof(*s->served));
    }
    uint32_t idx = (uint32_t)s->count++;
    struct sim_request *own = &s->requests[idx];
    *own = (struct sim_request){.arrival_ns = BASE_MAX(r->arrival_ns, s->now_ns),
                                .expert = r->expert,
                                .prompt = BASE_MAX(r->prompt, 1u),
                                .output = BASE_MAX(r->output, 1u),
                                .tag = r->tag};
    s->next_same[idx] = UINT32_MAX;
    if (s->head_same[r->expert] == UINT32_MAX) {
        s->head_same[r->expert] = idx;
        s->memory.experts[r->expert].next_use = idx;
    } else {
        s->next_same[s->tail_same[r->expert]] = idx;
    }
    s->tail_same[r->expert] = idx;
}

/* ---- what happens between steps ---- */

static void set_now(struct sim *s, uint64_t now_ns)
{
    s->now_ns = s->memory.now_ns = now_ns;
}

static bool start_load(struct sim *s, uint32_t expert)
{
    bool first = s->memory.queue_count == 0;
    if (!sim_memory_load(&s->memory, expert))
        return false;
    if (first)
        s->memory.experts[expert].load_idle_ns = s->totals.idle_ns;
    return true;
}

static void take_arrivals(struct sim *s)
{
    for (; s->arrived < s->count && s->requests[s->arrived].arrival_ns <= s->now_ns; s->arrived++) {
        struct sim_memory *m = &s->memory;
        uint32_t expert = s->requests[s->arrived].expert;
        m->experts[expert].queued++;
        /* A prefetch takes free space only and never keeps a load that somebody waits for. */
        if (s->opt.prefetch && m->experts[expert].place == SIM_ABSENT && m->queue_count == 0 &&
            m->used + m->kv_used + m->expert_bytes <= m->capacity)
            (void)start_load(s, expert);
    }
}

static void take_load(struct sim *s)
{
    struct sim_memory *m = &s->memory;
    while (m->queue_count > 0 && m->load_end_ns <= s->now_ns) {
        uint64_t end = m->load_end_ns;
        uint32_t expert = sim_memory_arrive(m);
        struct sim_expert *x = &m->experts[expert];
        x->credit_ns = 0;
        if (m->queue_count > 0)
            m->experts[m->queue[0]].load_idle_ns = s->totals.idle_ns;
        for (uint32_t i = 0; i < s->opt.lanes; i++) {
            struct lane *l = &s->lanes[i];
            if (l->request == UINT32_MAX || s->requests[l->request].expert != expert ||
                l->wait_ns == UINT64_MAX)
                continue;
            s->requests[l->request].stall_ns += end - BASE_MIN(end, l->wait_ns);
            l->wait_ns = UINT64_MAX;
            if (s->opt.run_while_loading)
                x->credit_ns = s->totals.idle_ns - x->load_idle_ns;
        }
    }
}

/* As the engine: KV must leave room for the largest expert that runs, or nothing could run. */
static bool may_admit(const struct sim *s, uint64_t kv)
{
    const struct sim_memory *m = &s->memory;
    if (s->running == 0 || kv == 0)
        return true;
    return kv + m->expert_bytes + m->expert_bytes / 16 <= sim_memory_room(m);
}

static bool admit_one(struct sim *s)
{
    uint32_t at = 0;
    struct sim_request *r = &s->requests[s->admitted];
    uint64_t kv = s->opt.kv_token_bytes * ((uint64_t)r->prompt + r->output);
    while (at < s->opt.lanes && s->lanes[at].request != UINT32_MAX)
        at++;
    if (at == s->opt.lanes || !may_admit(s, kv) || !sim_memory_take_kv(&s->memory, kv))
        return false;
    struct sim_expert *x = &s->memory.experts[r->expert];
    bool alone = true;
    for (uint32_t i = 0; i < s->opt.lanes; i++)
        alone &= s->lanes[i].request == UINT32_MAX ||
                 s->requests[s->lanes[i].request].expert != r->expert;
    if (alone)
        x->waiting_ns = s->now_ns;
    r->admitted_ns = s->now_ns;
    r->hit = x->place == SIM_RESIDENT;
    s->lanes[at] = (struct lane){.request = (uint32_t)s->admitted,
                                 .left = r->output,
                                 .wait_ns = r->hit ? UINT64_MAX : s->now_ns,
                                 .kv_bytes = kv};
    s->admitted++;
    s->running++;
    return true;
}

static void finish(struct sim *s, struct lane *l)
{
    uint32_t idx = l->request;
    struct sim_request *r = &s->requests[idx];
    struct sim_expert *x = &s->memory.experts[r->expert];
    r->done_ns = s->now_ns;
    s->memory.kv_used -= l->kv_bytes;
    l->request = UINT32_MAX;
    s->running--;
    x->queued--;
    s->totals.requests++;
    uint32_t head = s->head_same[r->expert];
    while (head != UINT32_MAX && s->requests[head].done_ns != 0)
        head = s->next_same[head];
    s->head_same[r->expert] = head;
    x->next_use = head == UINT32_MAX ? UINT64_MAX : head;
    if (s->done) {
        struct sim_request copy = *r; /* a submit may move the array */
        s->done(s->ctx, s, &copy);
    }
}

/* ---- deciding ---- */

static uint32_t base_of(struct sim *s, uint32_t expert, uint32_t *count)
{
    if (s->stamp[expert] == s->stamp_now)
        return s->slot[expert];
    const struct sim_expert *x = &s->memory.experts[expert];
    uint32_t at = (*count)++;
    s->stamp[expert] = s->stamp_now;
    s->slot[expert] = at;
    s->bases[at] = (struct base){.expert = expert, .first_lane = UINT32_MAX};
    s->view[at] = (struct sched_base){
        .open = x->place == SIM_LOADING,
        .missing_bytes = x->place == SIM_RESIDENT ? 0 : s->memory.expert_bytes,
        .resident_bytes = x->place == SIM_RESIDENT ? s->memory.expert_bytes : 0,
        .served_ns = x->served_ns,
        .waiting_ns = x->waiting_ns};
    return at;
}

static void make_view(struct sim *s, struct sched_view *v)
{
    uint32_t count = 0;
    s->stamp_now++;
    for (uint32_t i = s->opt.lanes; i-- > 0;) {
        struct lane *l = &s->lanes[i];
        if (l->request == UINT32_MAX)
            continue;
        const struct sim_request *r = &s->requests[l->request];
        uint32_t at = base_of(s, r->expert, &count);
        struct base *b = &s->bases[at];
        l->next = b->first_lane;
        b->first_lane = i;
        b->lanes++;
        b->prefilling += l->done < r->prompt;
        s->view[at].runnable += !s->view[at].open;
        if (!s->view[at].open && s->view[at].missing_bytes > 0 && l->wait_ns == UINT64_MAX)
            l->wait_ns = s->now_ns; /* its weights were taken away */
    }
    uint32_t last = s->last_expert;
    *v = (struct sched_view){.bases = s->view,
                             .count = count,
                             .last = last != UINT32_MAX && s->stamp[last] == s->stamp_now
                                         ? s->slot[last]
                                         : UINT32_MAX,
                             .room_bytes = sim_memory_room(&s->memory),
                             .max_defer_ns = s->opt.max_defer_ns};
}

/* The base whose step runs now; starts loads on the way. UINT32_MAX = none, wake_ns says until when. */
static uint32_t choose(struct sim *s, struct sched_view *v)
{
    s->wake_ns = UINT64_MAX;
    make_view(s, v);
    for (;;) {
        if (s->opt.blocking_loads && s->memory.queue_count > 0)
            return UINT32_MAX;
        uint32_t at = sched_next(v, s->now_ns);
        if (at == UINT32_MAX) {
            s->wake_ns = sched_wake_ns(v, s->now_ns);
            return UINT32_MAX;
        }
        if (s->view[at].missing_bytes == 0)
            return at;
        if (start_load(s, s->bases[at].expert))
            make_view(s, v); /* somebody may have lost his weights */
        else
            s->view[at].runnable = 0; /* no room while others load: not now */
    }
}

/* ---- running ---- */

static double step_s(const struct sim *s, const struct rdu_pass *p)
{
    struct rdu_clock c;
    rdu_pass_plan_time(&s->plan, p, &c);
    return rdu_clock_seconds(&c);
}

/* `count` tokens of a prompt whose first `at` are in. */
static struct rdu_pass chunk_pass(double at, double count, bool last)
{
    struct rdu_pass p = rdu_pass_prefill(1, count);
    p.pairs += at * count;
    p.square += at * count;
    p.kv_tokens += at;
    p.outs = last ? 1 : 0;
    return p;
}

/* Takes the lanes of the base into one step. Returns its node time. */
static double plan_step(struct sim *s, const struct base *b, uint32_t *ret_tokens)
{
    struct rdu_pass sum = {0};
    uint32_t decoding = b->lanes - b->prefilling, fresh = 0;
    uint32_t budget = sched_prefill_budget(s->opt.prefill_chunk, decoding, NULL);
    for (uint32_t i = b->first_lane; i != UINT32_MAX; i = s->lanes[i].next) {
        const struct lane *l = &s->lanes[i];
        uint32_t prompt = s->requests[l->request].prompt, tokens = 1;
        struct rdu_pass p;
        if (l->done < prompt) {
            tokens = BASE_MIN(prompt - l->done, budget);
            budget -= tokens;
            fresh += tokens > 0 && l->done == 0;
            p = chunk_pass(l->done, tokens, l->done + tokens == prompt);
        } else {
            p = rdu_pass_decode(1, l->context + 1);
        }
        ret_tokens[i] = tokens;
        if (tokens > 0)
            rdu_pass_add(&sum, &p);
    }
    return step_s(s, &sum) + (fresh > 0 ? s->opt.chip->node_inference_fixed_s : 0);
}

static void advance_lane(struct sim *s, struct lane *l, uint32_t tokens)
{
    struct sim_request *r = &s->requests[l->request];
    if (tokens == 0)
        return;
    if (l->done == 0) {
        sim_memory_use(&s->memory, r->expert);
        if (!s->memory.experts[r->expert].held)
            s->served[s->served_count++] = r->expert;
    }
    l->context += tokens;
    if (l->done < r->prompt) {
        l->done += tokens;
        if (l->done < r->prompt)
            return;
        r->first_ns = s->now_ns;
    }
    s->totals.tokens++;
    if (--l->left == 0)
        finish(s, l);
}

static void run_step(struct sim *s, uint32_t at)
{
    uint32_t tokens[SIM_LANES_MAX];
    struct base b = s->bases[at];
    struct sim_expert *x = &s->memory.experts[b.expert];
    double t = plan_step(s, &b, tokens);
    /* What ran while the weights came in needs not run again; the last layer was not there. */
    double kept = (double)x->credit_ns * 1e-9;
    t = BASE_MAX(t - kept, t / s->opt.shape->layers);
    x->credit_ns = 0;
    uint64_t ns = (uint64_t)llround(t * 1e9);
    set_now(s, s->now_ns + ns);
    s->totals.busy_ns += ns;
    s->totals.steps++;
    x->served_ns = x->waiting_ns = s->now_ns;
    s->last_expert = b.expert;
    for (uint32_t i = b.first_lane, next; i != UINT32_MAX; i = next) {
        next = s->lanes[i].next;
        advance_lane(s, &s->lanes[i], tokens[i]);
    }
}

/* ---- many rounds at once ---- */

struct round {
    uint32_t order[SIM_LANES_MAX], count; /* bases, the longest unserved first */
    double first_s[SIM_LANES_MAX];        /* their steps in the first round */
    uint32_t most;                        /* rounds until a lane ends, less one */
};

static bool list_round(struct sim *s, const struct sched_view *v, struct round *r)
{
    r->count = 0;
    r->most = UINT32_MAX;
    for (uint32_t i = 0; i < v->count; i++) {
        if (s->view[i].runnable == 0 || s->view[i].missing_bytes > 0)
            continue;
        if (s->bases[i].prefilling > 0)
            return false;
        for (uint32_t k = s->bases[i].first_lane; k != UINT32_MAX; k = s->lanes[k].next)
            r->most = BASE_MIN(r->most, s->lanes[k].left - 1);
        uint32_t at = r->count++;
        while (at > 0 && s->view[r->order[at - 1]].served_ns > s->view[i].served_ns) {
            r->order[at] = r->order[at - 1];
            at--;
        }
        r->order[at] = i;
    }
    return r->most >= 2;
}

/* Would the scheduler only go round among them? If an expert that must load may be next, no. */
static bool only_round(struct sim *s, const struct sched_view *v, const struct round *r)
{
    uint64_t kept[SIM_LANES_MAX];
    for (uint32_t k = 0; k < r->count; k++) {
        kept[k] = s->view[r->order[k]].served_ns;
        s->view[r->order[k]].served_ns = s->now_ns;
    }
    uint32_t next = sched_next(v, s->now_ns);
    for (uint32_t k = 0; k < r->count; k++)
        s->view[r->order[k]].served_ns = kept[k];
    return next != UINT32_MAX && s->view[next].missing_bytes == 0;
}

static double decode_s(const struct sim *s, const struct base *b, uint32_t more)
{
    struct rdu_pass sum = {0};
    for (uint32_t i = b->first_lane; i != UINT32_MAX; i = s->lanes[i].next) {
        struct rdu_pass p = rdu_pass_decode(1, s->lanes[i].context + 1 + more);
        rdu_pass_add(&sum, &p);
    }
    return step_s(s, &sum);
}

static uint64_t next_event(const struct sim *s, const struct sched_view *v)
{
    uint64_t at = sched_wake_ns(v, s->now_ns);
    if (s->arrived < s->count)
        at = BASE_MIN(at, s->requests[s->arrived].arrival_ns);
    if (s->memory.queue_count > 0)
        at = BASE_MIN(at, s->memory.load_end_ns);
    return at;
}

/* Seconds of n rounds: steps get longer with the context, evenly. */
static double rounds_s(double first, double slope, double n)
{
    return n * first + slope * n * (n - 1) / 2;
}

static uint32_t rounds_within(double first, double slope, uint32_t most, double s)
{
    uint32_t low = 0, high = most;
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;
        if (rounds_s(first, slope, mid) <= s)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

static void take_rounds(struct sim *s, const struct round *r, uint32_t n, double total_s, double slope)
{
    uint64_t ns = (uint64_t)llround(total_s * 1e9), end = s->now_ns + ns;
    double after = 0;
    for (uint32_t k = r->count; k-- > 0;) {
        struct sim_expert *x = &s->memory.experts[s->bases[r->order[k]].expert];
        x->served_ns = x->waiting_ns = end - (uint64_t)llround(after * 1e9);
        after += r->first_s[k] + slope * (n - 1) / r->count;
    }
    set_now(s, end);
    for (uint32_t k = 0; k < r->count; k++) {
        const struct base *b = &s->bases[r->order[k]];
        for (uint32_t i = b->first_lane; i != UINT32_MAX; i = s->lanes[i].next) {
            s->lanes[i].context += n;
            s->lanes[i].left -= n;
            s->totals.tokens += n;
        }
    }
    s->last_expert = s->bases[r->order[r->count - 1]].expert;
    s->totals.busy_ns += ns;
    s->totals.steps += (uint64_t)n * r->count;
}

static bool run_rounds(struct sim *s, const struct sched_view *v)
{
    struct round r;
    double first = 0, last = 0;
    if (!list_round(s, v, &r) || !only_round(s, v, &r))
        return false;
    uint64_t event = next_event(s, v);
    if (event <= s->now_ns)
        return false;
    for (uint32_t k = 0; k < r.count; k++) {
        const struct base *b = &s->bases[r.order[k]];
        first += r.first_s[k] = decode_s(s, b, 0);
        last += decode_s(s, b, r.most - 1);
    }
    double slope = (last - first) / (r.most - 1);
    double until = event == UINT64_MAX ? 1e18 : (double)(event - s->now_ns) * 1e-9;
    uint32_t n = rounds_within(first, slope, r.most, until);
    if (n == 0)
        return false;
    take_rounds(s, &r, n, rounds_s(first, slope, n), slope);
    return true;
}

/* ---- the loop ---- */

static enum err_code stuck(const struct sim *s, struct err *e)
{
    const struct sim_request *r = &s->requests[BASE_MIN(s->admitted, s->count - 1)];
    char have[32], want[32];
    uint64_t need = s->memory.expert_bytes + s->opt.kv_token_bytes * ((uint64_t)r->prompt + r->output);
    return err_set(e, ERR_NO_MEMORY,
                   "request %zu needs %s of hbm for its expert and %" PRIu64
                   " tokens of KV, and never more than %s are free: give more hbm",
                   s->admitted + 1, size_format(need, want, sizeof(want)),
                   (uint64_t)r->prompt + r->output,
                   size_format(sim_memory_room(&s->memory), have, sizeof(have)));
}

enum err_code sim_run(struct sim *s, void (*done)(void *ctx, struct sim *s, const struct sim_request *r),
                      void *ctx, struct err *e)
{
    struct sched_view v;
    s->done = done;
    s->ctx = ctx;
    while (s->admitted < s->count || s->running > 0) {
        take_arrivals(s);
        take_load(s);
        while (s->admitted < s->arrived && admit_one(s))
            continue;
        uint32_t at = choose(s, &v);
        if (at != UINT32_MAX) {
            if (!run_rounds(s, &v))
                run_step(s, at);
            continue;
        }
        uint64_t next = BASE_MIN(s->wake_ns, next_event(s, &v));
        if (next == UINT64_MAX || next <= s->now_ns)
            return stuck(s, e);
        s->totals.idle_ns += next - s->now_ns;
        set_now(s, next);
    }
    return ERR_OK;
}

uint64_t sim_now(const struct sim *s)
{
    return s->now_ns;
}

const struct sim_request *sim_requests(const struct sim *s, size_t *ret_count)
{
    *ret_count = s->count;
    return s->requests;
}

void sim_totals(const struct sim *s, struct sim_totals *ret)
{
    const struct sim_memory *m = &s->memory;
    uint64_t held = s->opt.hold == UINT32_MAX ? 0 : m->expert_bytes;
    *ret = s->totals;
    ret->loads = m->loads;
    ret->evictions = m->evictions;
    ret->load_bytes = m->loads * m->expert_bytes;
    ret->belady_loads = sim_belady_loads(s->served, s->served_count, m->count,
                                         (uint32_t)((m->capacity - held) / m->expert_bytes));
}

double sim_inference_s(const struct rdu_chip *chip, const struct rdu_shape *shape, enum rdu_level level,
                       double seqs, double prompt, double tokens)
{
    struct rdu_clock prefill, first, last;
    struct rdu_pass p = rdu_pass_prefill(seqs, prompt);
    rdu_time_pass(chip, shape, &p, level, &prefill);
    double sum = chip->node_inference_fixed_s + rdu_clock_seconds(&prefill);
    if (tokens <= 1)
        return sum;
    p = rdu_pass_decode(seqs, prompt + 1);
    rdu_time_pass(chip, shape, &p, level, &first);
    p = rdu_pass_decode(seqs, prompt + tokens - 1);
    rdu_time_pass(chip, shape, &p, level, &last);
    return sum + (tokens - 1) * (rdu_clock_seconds(&first) + rdu_clock_seconds(&last)) / 2;
}
