/* Rules, then scores, then the price of a switch. Every decision goes through routing_decide: those
 * of requests for `auto`, and those that POST /v1/route asks for. */
#include "daemon/routing.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/api.h"
#include "daemon/conversations.h"
#include "daemon/engine_order.h"
#include "daemon/json_out.h"
#include "daemon/routing_rules.h"

#define EXAMPLES_MAX 64 /* of one expert that count */

struct routing {
    struct route_encoder *encoder;
    struct router_prototypes *prototypes;
    int *prototype_expert; /* [prototypes] */
    int *expert_label;     /* [experts] label that it answers, -1 = none */
    struct router_rules *rules;
    struct router_policy *policy;
    struct conversations *conversations;
    int log_fd; /* -1 = none; appended to by single writes */
    struct buf trouble;
    bool use_ngram, use_encoder;
};

static struct routing *of(const struct server *s)
{
    return s->routing;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

static void note_trouble(struct routing *r, const char *what, const struct err *e)
{
    buf_printf(&r->trouble, "%s%s: %s", r->trouble.len ? "\n" : "", what, e->msg);
}

static bool has_stage(const struct conf *c, const char *name)
{
    for (size_t i = 0; i < c->router_stages_count; i++)
        if (strcmp(c->router_stages[i], name) == 0)
            return true;
    return false;
}

/* The configured head; without one, the store's if it has one. */
static void open_head(struct server *s)
{
    struct err e = {0};
    bool named = s->conf->router_head[0] != 0;
    char *path = named ? mem_strdup(s->conf->router_head)
                       : mem_format("%s/router.head", s->conf->store_path);
    if ((named || access(path, R_OK) == 0) && of(s)->use_ngram &&
        router_head_open(path, &s->head, &e) != ERR_OK)
        note_trouble(of(s), "no router: 'auto' is answered by the generalist", &e);
    free(path);
}

static void open_encoder(struct server *s)
{
    struct err e = {0};
    struct routing *r = of(s);
    const char *path = s->conf->router_encoder;
    if (path[0] != 0 && route_encoder_open(path, &r->encoder, &e) != ERR_OK)
        note_trouble(r, "no encoder stage: n-grams alone decide", &e);
    if (r->encoder != NULL && s->head != NULL && router_head_width(s->head) > 0 &&
        router_head_encoder_id(s->head) != route_encoder_view(r->encoder)->id) {
        err_set(&e, ERR_INVALID, "the head was trained with another encoder than %s", path);
        note_trouble(r, "no encoder stage: n-grams alone decide", &e);
    }
}

static int label_of(const struct server *s, const char *name)
{
    for (size_t i = 0; i < router_head_labels(s->head); i++)
        if (strcmp(router_head_label(s->head, i), name) == 0)
            return (int)i;
    return -1;
}

/* Labels to experts and back: by name and alias, and by an expert's configured label, under which
 * several experts may answer the same prompts. */
static void map_labels(struct server *s)
{
    size_t labels = router_head_labels(s->head), experts = experts_count(s->experts);
    s->label_to_expert = mem_array(labels + 1, sizeof *s->label_to_expert);
    s->label_allowed = mem_array(labels + 1, sizeof *s->label_allowed);
    for (size_t i = 0; i < labels; i++) {
        const char *label = router_head_label(s->head, i);
        struct expert *ex = server_find_expert(s, label);
        bool usable = ex != NULL && expert_ok(ex, NULL);
        s->label_to_expert[i] = usable ? (int)expert_index(ex) : -1;
        s->label_allowed[i] = usable || strcmp(label, "general") == 0;
        if (usable)
            of(s)->expert_label[expert_index(ex)] = (int)i;
    }
    for (size_t i = 0; i < experts; i++) {
        const struct conf_expert *conf = s->serving[i].conf;
        int label = conf != NULL && conf->label[0] != 0 ? label_of(s, conf->label) : -1;
        if (label < 0 || !expert_ok(experts_at(s->experts, i), NULL))
            continue;
        of(s)->expert_label[i] = label;
        if (s->label_to_expert[label] < 0)
            s->label_to_expert[label] = (int)i;
        s->label_allowed[label] = true;
    }
}

/* Experts that the head does not know and that say by example what they are for. */
static void add_prototypes(struct server *s)
{
    struct routing *r = of(s);
    r->prototypes = router_prototypes_open(s->head);
    r->prototype_expert = mem_array(experts_count(s->experts) + 1, sizeof *r->prototype_expert);
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        struct expert *ex = experts_at(s->experts, i);
        const struct conf_expert *conf = s->serving[i].conf;
        struct router_turn texts[EXAMPLES_MAX + 1];
        size_t count = 0;
        struct err e = {0};
        int idx;
        if (conf == NULL || conf->examples_count == 0 || r->expert_label[i] >= 0 ||
            !expert_ok(ex, NULL))
            continue;
        for (size_t k = 0; k < BASE_MIN(conf->examples_count, (size_t)EXAMPLES_MAX); k++)
            texts[count++] = (struct router_turn){conf->examples[k], strlen(conf->examples[k])};
        if (conf->description[0] != 0)
            texts[count++] = (struct router_turn){conf->description, strlen(conf->description)};
        if (router_prototypes_add(r->prototypes, expert_info(ex)->name,
                                  route_encoder_view(r->encoder), texts, count, &idx, &e) == ERR_OK)
            r->prototype_expert[idx] = (int)i;
        else
            note_trouble(r, "an expert is not routed to by its examples", &e);
    }
}

static enum err_code open_policy(struct server *s, struct err *e)
{
    const struct conf *c = s->conf;
    const struct router_policy_options opt = {
        .expr = c->router_policy, .lambda = c->router_lambda, .margin = c->router_margin};
    enum err_code code = router_policy_open(&opt, &of(s)->policy, e);
    return code == ERR_OK ? ERR_OK : err_wrap(e, "router.policy");
}

static enum err_code open_log(struct server *s, struct err *e)
{
    const char *path = s->conf->router_log;
    if (path[0] == 0)
        return ERR_OK;
    of(s)->log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    return of(s)->log_fd >= 0 ? ERR_OK
                              : err_set_errno(e, ERR_IO, "router.log: cannot open '%.200s'", path);
}

enum err_code routing_open(struct server *s, struct err *e)
{
    struct routing *r = s->routing = mem_alloc(sizeof *r);
    r->log_fd = -1;
    r->use_ngram = has_stage(s->conf, "ngram");
    r->use_encoder = has_stage(s->conf, "encoder");
    r->conversations = conversations_open();
    r->expert_label = mem_array(experts_count(s->experts) + 1, sizeof *r->expert_label);
    for (size_t i = 0; i < experts_count(s->experts); i++)
        r->expert_label[i] = -1;
    if (has_stage(s->conf, "llm")) {
        struct err none;
        err_set(&none, ERR_UNSUPPORTED, "router.stages: 'llm' is not there yet");
        note_trouble(r, "no llm stage", &none);
    }
    open_head(s);
    open_encoder(s);
    if (s->head != NULL) {
        map_labels(s);
        add_prototypes(s);
    }
    enum err_code code = open_policy(s, e);
    if (code == ERR_OK)
        code = routing_rules_open(s, s->conf->router_rules, &r->rules, e);
    return code == ERR_OK ? open_log(s, e) : code;
}

void routing_close(struct server *s)
{
    struct routing *r = s->routing;
    if (r != NULL) {
        router_prototypes_close(&r->prototypes);
        free(r->prototype_expert);
        free(r->expert_label);
        router_rules_close(&r->rules);
        router_policy_close(&r->policy);
        conversations_close(&r->conversations);
        route_encoder_close(&r->encoder);
        if (r->log_fd >= 0)
            close(r->log_fd);
        buf_done(&r->trouble);
        free(r);
        s->routing = NULL;
    }
    router_head_close(&s->head);
    free(s->label_to_expert);
    free(s->label_allowed);
    s->label_to_expert = NULL;
    s->label_allowed = NULL;
}

const char *routing_trouble(const struct server *s)
{
    return s->routing != NULL && of(s)->trouble.len ? of(s)->trouble.data : "";
}

struct route_encoder *routing_encoder(const struct server *s)
{
    return s->routing != NULL ? of(s)->encoder : NULL;
}

/* ---- who may answer
 * ------------------------------------------------------------------------------ */

/* The generalist, or for a key that may not use it (or a rule that forbids it) the first full
 * expert that may answer. */
static struct expert *generalist_for(const struct server *s, const char *key, const bool *forbidden)
{
    size_t own = expert_index(s->generalist);
    if (api_key_may_use(s, s->generalist, key) && !forbidden[own])
        return s->generalist;
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        struct expert *ex = experts_at(s->experts, i);
        if (!expert_info(ex)->is_adapter && expert_ok(ex, NULL) && api_key_may_use(s, ex, key) &&
            !forbidden[i])
            return ex;
    }
    return s->generalist;
}

/* Labels that some expert may answer for this key and these rules. */
static void allow_labels(const struct server *s, const char *key, const bool *forbidden, bool *ret)
{
    for (size_t l = 0; l < router_head_labels(s->head); l++)
        ret[l] = s->label_allowed[l] && s->label_to_expert[l] < 0;
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        struct expert *ex = experts_at(s->experts, i);
        int label = of(s)->expert_label[i];
        if (label >= 0 && !forbidden[i] && api_key_may_use(s, ex, key))
            ret[label] = true;
    }
}

/* The expert that the scores alone choose for a label: its own, else the first that may. */
static struct expert *expert_for(const struct server *s, int label, const char *key,
                                 const bool *forbidden)
{
    int own = s->label_to_expert[label];
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < experts_count(s->experts); i++)
            if (of(s)->expert_label[i] == label && (pass == 1 || (int)i == own) && !forbidden[i] &&
                api_key_may_use(s, experts_at(s->experts, i), key))
                return experts_at(s->experts, i);
    return NULL;
}

/* ---- the price
 * -------------------------------------------------------------------------------------- */

struct costs {
    struct engine_place *places; /* [experts] */
    struct engine_stats stats;
    double load_rate, token_s;
    size_t conversation_bytes;
    int before; /* expert that has run the conversation so far, -1 = none */
};

static struct router_candidate price_of(const struct costs *k, size_t idx, float score)
{
    const struct engine_place *place = &k->places[idx];
    double missing = (double)(place->bytes[MEMTIER_DDR] + place->bytes[MEMTIER_NVME]);
    double again = k->before >= 0 && k->before != (int)idx
                       ? (double)k->conversation_bytes / 4.0 * k->token_s /* bytes of a token */
                       : 0.0;
    /* The queue is one for all: it counts against those that must load behind it. */
    double queue = missing > 0 ? (double)k->stats.queued * k->token_s : 0.0;
    return (struct router_candidate){.score = score,
                                     .bytes = (float)missing,
                                     .load_s = (float)(missing / k->load_rate),
                                     .queue_s = (float)queue,
                                     .prefill_s = (float)again,
                                     .resident = missing == 0};
}

static void read_costs(const struct server *s, struct costs *k)
{
    size_t count = experts_count(s->experts);
    k->places = mem_array(count + 1, sizeof *k->places);
    engine_places(s->engine, k->places, count);
    engine_stats(s->engine, &k->stats);
    k->load_rate = k->stats.memtier.load_rate > 0 ? k->stats.memtier.load_rate : 1e9;
    k->token_s = k->stats.rdu.tokens > 0
                     ? (double)k->stats.rdu.host_ns / 1e9 / (double)k->stats.rdu.tokens
                     : 0.0;
}

/* Every expert that has a label and may answer, with its label's score; the plain choice among
 * them. */
static size_t collect(const struct server *s, const struct routing_query *q, const float *scores,
                      const bool *forbidden, const struct costs *k, struct routing_result *r)
{
    size_t plain = SIZE_MAX;
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        struct expert *ex = experts_at(s->experts, i);
        int label = of(s)->expert_label[i];
        if (r->candidates_count == ROUTER_CANDIDATES_MAX)
            break;
        if (label < 0 || ((forbidden[i] || !api_key_may_use(s, ex, q->key)) && ex != r->expert))
            continue;
        if (ex == r->expert)
            plain = r->candidates_count;
        r->candidates[r->candidates_count++] =
            (struct routing_candidate){.expert = ex, .price = price_of(k, i, scores[label])};
    }
    return plain;
}

/* May a price move this decision? Not one that a rule, an example or a tool call made, and not an
 * abstention: what nobody is sure of is the generalist's. */
static bool is_priced(const struct server *s, const struct routing_result *r)
{
    bool scored = r->reason == ROUTER_REASON_NGRAM || r->reason == ROUTER_REASON_ENCODER ||
                  r->reason == ROUTER_REASON_GENERAL;
    return scored && s->engine != NULL &&
           (!router_policy_is_plain(of(s)->policy) || of(s)->log_fd >= 0);
}

static void apply_price(const struct server *s, const struct routing_query *q, const float *scores,
                        const bool *forbidden, struct costs *k, struct routing_result *r)
{
    struct router_candidate c[ROUTER_CANDIDATES_MAX];
    float utility[ROUTER_CANDIDATES_MAX];
    read_costs(s, k);
    size_t plain = collect(s, q, scores, forbidden, k, r);
    for (size_t i = 0; i < r->candidates_count; i++)
        c[i] = r->candidates[i].price;
    free(k->places);
    if (plain == SIZE_MAX) {
        r->candidates_count = 0;
        return;
    }
    size_t winner = router_choose(of(s)->policy, c, r->candidates_count, plain, utility);
    for (size_t i = 0; i < r->candidates_count; i++) {
        r->candidates[i].utility = utility[i];
        r->candidates[i].price.plain = i == plain;
    }
    r->priced = true;
    r->switched = winner != plain;
    r->expert = r->candidates[winner].expert;
}

/* ---- the decision
 * -------------------------------------------------------------------------------------- */

/* Conversations of one API key are not known to another, whatever names their clients give. */
static uint64_t of_key(const struct routing_query *q, uint64_t conversation)
{
    return q->key != NULL ? hash64_of(q->key, strlen(q->key), conversation) : conversation;
}

static uint64_t key_of_name(const struct routing_query *q)
{
    if (q->conversation != NULL && q->conversation[0] != 0)
        return of_key(q, conversations_key_name("conversation", q->conversation));
    return q->user != NULL && q->user[0] != 0 ? of_key(q, conversations_key_name("user", q->user))
                                              : 0;
}

static uint64_t key_of_turns(const struct routing_query *q, size_t count)
{
    return of_key(q, conversations_key_turns(q->turns, count));
}

/* The conversation so far: by its earlier turns, or by the name that the client gave it. */
static bool find_conversation(const struct server *s, const struct routing_query *q,
                              struct conversation *ret)
{
    size_t before = q->tool_pending ? q->turns_count : q->turns_count - 1;
    uint64_t name = key_of_name(q);
    if (q->turns_count == 0)
        return false;
    if (before > 0 &&
        conversations_find(of(s)->conversations, key_of_turns(q, before), ret))
        return true;
    return name != 0 && conversations_find(of(s)->conversations, name, ret);
}

static void note_conversation(const struct server *s, const struct routing_query *q,
                              const struct expert *ex)
{
    if (q->turns_count == 0)
        return;
    const struct router_turn *last = &q->turns[q->turns_count - 1];
    struct conversation v = {.key = key_of_turns(q, q->turns_count),
                             .expert_idx = (int)expert_index(ex)};
    v.text_len = (uint32_t)utf8_complete_prefix(last->text,
                                                BASE_MIN(last->len, (size_t)CONVERSATION_TEXT_MAX));
    memcpy(v.text, last->text, v.text_len);
    conversations_note(of(s)->conversations, &v);
    v.key = key_of_name(q);
    if (v.key != 0)
        conversations_note(of(s)->conversations, &v);
}

/* Scores of the query; a client that sends its newest turn alone gets the one before it from
 * memory. */
static void score(const struct server *s, struct router_scratch *scratch,
                  const struct routing_query *q, const bool *allowed,
                  const struct conversation *before, struct router_decision *ret, float *scores)
{
    const struct router_options opt = {
        .threshold = (double)NAN,
        .label_allowed = allowed,
        .generalist_idx = -1,
        .encoder = of(s)->use_encoder ? route_encoder_view(of(s)->encoder) : NULL,
        .prototypes = of(s)->use_encoder ? of(s)->prototypes : NULL};
    struct router_turn two[2];
    if (before != NULL && q->turns_count == 1 && before->text_len > 0) {
        two[0] = (struct router_turn){before->text, before->text_len};
        two[1] = q->turns[0];
        router_decide(s->head, scratch, two, 2, &opt, ret, scores);
        return;
    }
    router_decide(s->head, scratch, q->turns, q->turns_count, &opt, ret, scores);
}

static void decide_by_scores(struct server *s, struct router_scratch *scratch,
                             const struct routing_query *q, const bool *forbidden,
                             const struct conversation *before, struct routing_result *r)
{
    size_t labels = router_head_labels(s->head);
    bool *allowed = mem_array(labels + 1, sizeof *allowed);
    float *scores = mem_array(labels + 1, sizeof *scores);
    struct costs costs = {.before = before != NULL ? before->expert_idx : -1};
    for (size_t i = 0; i < q->turns_count; i++)
        costs.conversation_bytes += q->turns[i].len;
    allow_labels(s, q->key, forbidden, allowed);
    score(s, scratch, q, allowed, before, &r->decision, scores);
    const struct router_decision *d = &r->decision;
    struct expert *chosen = NULL;
    if (d->prototype_idx >= 0)
        chosen = experts_at(s->experts, (size_t)of(s)->prototype_expert[d->prototype_idx]);
    else if (d->label_idx >= 0)
        chosen = expert_for(s, d->label_idx, q->key, forbidden);
    if (chosen != NULL && !forbidden[expert_index(chosen)] && api_key_may_use(s, chosen, q->key))
        r->expert = chosen;
    r->reason = d->reason;
    r->confidence = d->confidence;
    if (is_priced(s, r))
        apply_price(s, q, scores, forbidden, &costs, r);
    free(allowed);
    free(scores);
}

static void write_log(const struct server *s, const struct routing_query *q,
                      const struct routing_result *r)
{
    struct buf line = {0};
    if (of(s)->log_fd < 0)
        return;
    routing_put(s, q, r, &line);
    buf_puts(&line, "\n");
    ssize_t n = write(of(s)->log_fd, line.data, line.len);
    (void)n; /* a full disk must not stop the answer */
    buf_done(&line);
}

void routing_decide(struct server *s, struct router_scratch *scratch, const struct routing_query *q,
                    struct routing_result *ret)
{
    struct conversation before;
    size_t experts = experts_count(s->experts);
    bool *forbidden = mem_array(experts + 1, sizeof *forbidden);
    *ret = (struct routing_result){.reason = ROUTER_REASON_NO_HEAD};
    ret->decision = (struct router_decision){.label_idx = -1, .best_idx = -1, .prototype_idx = -1};
    const struct router_rule_input in = {.has_tools = q->has_tools,
                                         .json_wanted = q->json_wanted,
                                         .api_key = q->key,
                                         .header = q->header,
                                         .header_ctx = q->header_ctx,
                                         .turn = q->turns_count > 0 ? q->turns[q->turns_count - 1]
                                                                    : (struct router_turn){"", 0}};
    int pin = s->routing != NULL && of(s)->rules != NULL
                  ? router_rules_apply(of(s)->rules, &in, forbidden, experts)
                  : -1;
    struct expert *pinned = pin >= 0 ? experts_at(s->experts, (size_t)pin) : NULL;
    ret->expert = generalist_for(s, q->key, forbidden);
    ret->known = s->routing != NULL && find_conversation(s, q, &before);
    struct expert *held = ret->known ? experts_at(s->experts, (size_t)before.expert_idx) : NULL;
    if (ret->known && q->tool_pending && api_key_may_use(s, held, q->key)) {
        ret->expert = held;
        ret->reason = ROUTER_REASON_TOOL;
        ret->confidence = 1.0;
    } else if (pinned != NULL && expert_ok(pinned, NULL) && api_key_may_use(s, pinned, q->key)) {
        ret->expert = pinned;
        ret->reason = ROUTER_REASON_RULE;
        ret->confidence = 1.0;
    } else if (experts == 1) {
        ret->reason = ROUTER_REASON_ONLY;
        ret->confidence = 1.0;
    } else if (s->head != NULL && scratch != NULL && s->routing != NULL) {
        decide_by_scores(s, scratch, q, forbidden, ret->known ? &before : NULL, ret);
    }
    free(forbidden);
    if (s->routing == NULL)
        return;
    note_conversation(s, q, ret->expert);
    write_log(s, q, ret);
}

/* ---- in writing
 * -------------------------------------------------------------------------------------------- */

static void put_candidate(const struct routing_candidate *c, struct buf *out)
{
    const struct router_candidate *p = &c->price;
    buf_puts(out, "{\"expert\":");
    json_put_str(out, expert_info(c->expert)->name);
    buf_puts(out, ",\"score\":");
    json_put_real(out, (double)p->score, 9);
    buf_puts(out, ",\"load_s\":");
    json_put_real(out, (double)p->load_s, 9);
    buf_puts(out, ",\"queue_s\":");
    json_put_real(out, (double)p->queue_s, 9);
    buf_puts(out, ",\"prefill_s\":");
    json_put_real(out, (double)p->prefill_s, 9);
    buf_puts(out, ",\"bytes\":");
    json_put_real(out, (double)p->bytes, 9);
    buf_printf(out, ",\"resident\":%s,\"plain\":%s,\"utility\":", p->resident ? "true" : "false",
               p->plain ? "true" : "false");
    json_put_real(out, isfinite(c->utility) ? (double)c->utility : (double)NAN, 9);
    buf_puts(out, "}");
}

void routing_put(const struct server *s, const struct routing_query *q,
                 const struct routing_result *r, struct buf *out)
{
    buf_printf(out, "{\"time_ms\":%llu,\"id\":", (unsigned long long)clock_wall_ms());
    json_put_str(out, q->id);
    buf_puts(out, ",\"expert\":");
    json_put_str(out, expert_info(r->expert)->name);
    buf_printf(out,
               ",\"reason\":\"%s\",\"stage\":\"%s\",\"confidence\":", router_reason_name(r->reason),
               router_stage_name(r->decision.stage));
    json_put_real(out, r->confidence, 6);
    buf_puts(out, ",\"best\":");
    json_put_str(out, r->decision.best_idx >= 0
                          ? router_head_label(s->head, (size_t)r->decision.best_idx)
                          : NULL);
    buf_printf(out, ",\"known\":%s,\"switched\":%s,\"us\":{\"ngram\":%.1f,\"encoder\":%.1f}",
               r->known ? "true" : "false", r->switched ? "true" : "false",
               (double)r->decision.stage_ns[ROUTER_STAGE_NGRAM] / 1e3,
               (double)r->decision.stage_ns[ROUTER_STAGE_ENCODER] / 1e3);
    buf_puts(out, ",\"lambda\":");
    json_put_real(out, s->conf->router_lambda, 9);
    buf_puts(out, ",\"margin\":");
    json_put_real(out, s->conf->router_margin, 9);
    buf_puts(out, ",\"policy\":");
    json_put_str(out, s->conf->router_policy);
    buf_puts(out, ",\"candidates\":[");
    for (size_t i = 0; i < r->candidates_count; i++) {
        if (i > 0)
            buf_puts(out, ",");
        put_candidate(&r->candidates[i], out);
    }
    buf_puts(out, "]}");
}
