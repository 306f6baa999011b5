/* router/: which expert should answer. Rules -> scores -> choice (design/routing.md). Scores come
 * from a cascade: hashed word and character n-grams with a linear head, microseconds on any thread;
 * where they are not entitled to answer, a sentence encoder's vector with a head of its own, mixed
 * with what the n-grams said. Both are calibrated and abstain to the generalist. Decisions are pure
 * functions of head, text and options: any thread, no I/O, no allocation beyond a caller-owned
 * scratch; the encoder is the caller's. Source: Samba-CoE (arXiv 2405.07518, 2). */
#ifndef SWITCHYARD_ROUTER_H
#define SWITCHYARD_ROUTER_H

#include "base/base.h"

#define ROUTER_NAME_MAX 64 /* bytes of a label, with NUL */
#define ROUTER_LABELS_MAX 1024
#define ROUTER_REASONS_MAX 8

/* A trained head: labels, n-gram geometry, quantised weights, temperature, threshold. Immutable. */
struct router_head;

/* Read and check a head file (magic, version, sizes, checksum): ERR_CORRUPT, ERR_NOT_FOUND
 * or ERR_IO with the cause. */
enum err_code router_head_open(const char *path, struct router_head **ret,
                               struct err *e) BASE_NODISCARD;
enum err_code router_head_parse(const void *data, size_t len, struct router_head **ret,
                                struct err *e) BASE_NODISCARD;
void router_head_close(struct router_head **h);
size_t router_head_labels(const struct router_head *h);
const char *router_head_label(const struct router_head *h, size_t label_idx);

/* The encoder stage's vector width, 0 = the head has none, and the encoder it was trained with. */
size_t router_head_width(const struct router_head *h);
uint64_t router_head_encoder_id(const struct router_head *h);

/* Working memory of one deciding thread. */
struct router_scratch;
struct router_scratch *router_scratch_open(const struct router_head *h);
void router_scratch_close(struct router_scratch **s);

/* One turn of the conversation, newest last. Only user turns are read. */
struct router_turn {
    const char *text;
    size_t len;
};

/* A sentence encoder as the caller runs it: vectors [count, width] of length 1. It may wait for
 * another thread. A failure is no error of the router: the n-gram stage answers. */
struct router_encoder {
    size_t width;
    uint64_t id;
    void *ctx;
    enum err_code (*encode)(void *ctx, const struct router_turn *texts, size_t count, float *ret,
                            struct err *e);
};

struct router_options {
    double threshold;          /* below this confidence: abstain; NAN = the head's own */
    const bool *label_allowed; /* [labels] or NULL = all; labels that name no expert are false */
    const struct router_encoder *encoder; /* NULL, or another than the head's: n-grams alone */
    const struct router_prototypes *prototypes; /* NULL = none; needs the encoder */
    bool encoder_always; /* ask the encoder for every prompt: to measure the stage by itself */
    int generalist_idx;  /* label that means "no specialist", -1 = the head's own ("general") */
};

enum router_reason {
    ROUTER_REASON_MODEL,     /* the client named the expert; the router was not asked */
    ROUTER_REASON_ONLY,      /* there is only one expert */
    ROUTER_REASON_NGRAM,     /* the n-gram stage was sure */
    ROUTER_REASON_ENCODER,   /* the encoder stage was sure */
    ROUTER_REASON_PROTOTYPE, /* closest to an expert's examples */
    ROUTER_REASON_GENERAL,   /* the scores say: no specialist */
    ROUTER_REASON_ABSTAIN,   /* not sure enough: generalist */
    ROUTER_REASON_EMPTY,     /* nothing to read: generalist */
    ROUTER_REASON_NO_HEAD,   /* no head is loaded: generalist */
    ROUTER_REASON_RULE,      /* a rule of the configuration named the expert */
    ROUTER_REASON_TOOL,      /* a tool call is answered: its expert goes on */
};
const char *router_reason_name(enum router_reason r); /* "model", "ngram", "abstain", ... */

enum router_stage { ROUTER_STAGE_NGRAM, ROUTER_STAGE_ENCODER, ROUTER_STAGE_LLM, ROUTER_STAGES };
const char *router_stage_name(enum router_stage s); /* "ngram" */

struct router_decision {
    int label_idx; /* -1 = the generalist without a label (empty text, no head) */
    char label[ROUTER_NAME_MAX];
    double confidence; /* calibrated probability of the best label, before abstention */
    enum router_reason reason;
    int best_idx;            /* best label even when abstaining */
    enum router_stage stage; /* the most expensive one that was asked about the last turn */
    int prototype_idx;       /* the expert added by example that was chosen, -1 = none */
    uint64_t stage_ns[ROUTER_STAGES]; /* host time spent in each */
};

/* Decide for a conversation. Cost is bounded: the first and last kilobytes of a long text count.
 * `scores` ([labels] probabilities) may be NULL. Never fails. */
void router_decide(const struct router_head *h, struct router_scratch *s,
                   const struct router_turn *turns, size_t turns_count,
                   const struct router_options *opt, struct router_decision *ret, float *scores);

/* The n-grams that spoke most for a label: contribution to its logit minus the mean over labels. */
struct router_evidence {
    char ngram[48];
    double weight;
};
size_t router_explain(const struct router_head *h, struct router_scratch *s,
                      const struct router_turn *turns, size_t turns_count, int label_idx,
                      struct router_evidence *ret, size_t cap);

/* ---- training and evaluation ----------------------------------------------------------------- */

/* One labelled row of DATA.jsonl: {"text", "expert"} ("source", "kind" and "turns" are read too).
 * A line with "turns": [{"text", "expert", "followup"}] becomes one row per turn whose text is the
 * turns up to and including this one, joined by ROUTER_TURN_SEP; router_eval takes it apart again,
 * router_train reads the last turn only. */
#define ROUTER_TURN_SEP '\x1e'
struct router_row {
    char *text;
    char *expert;
    char *source; /* "" if absent */
    char *kind;   /* "" if absent; of a turn "followup" or "turn" */
};
struct router_data {
    struct router_row *rows;
    size_t count;
};
/* Bad lines are ERR_INVALID with their line number. */
enum err_code router_data_load(const char *path, struct router_data *ret,
                               struct err *e) BASE_NODISCARD;
/* The same, behind the rows that are already in `d`; `d` is unchanged on failure. */
enum err_code router_data_append(const char *path, struct router_data *d,
                                 struct err *e) BASE_NODISCARD;
void router_data_done(struct router_data *d);

/* Rows of source "wording" whose text holds "{}" are requests to be filled with inputs of the same
 * expert:
 * {"text": "How is {} pronounced?", "expert": "g2p", "source": "wording"}. They teach more ways to
 * ask without more inputs; inputs are what remains of other rows when the wording that their
 * `source` shares is taken away. Rows labelled "any" are left out. */
struct router_train_options {
    uint32_t word_bits, char_bits; /* hashed feature space; 0 = the default that fits `max_bytes` */
    double l2;                     /* 0 = default */
    uint32_t iterations;           /* 0 = default */
    size_t max_bytes;              /* of the head file; 0 = 4 MiB */
    double holdout;                /* share kept for calibration when `val` is NULL; 0 = 0.1 */
    uint64_t seed;
    unsigned threads;
    /* NULL: the head gets no encoder stage. Two of them on two threads halve the time. */
    const struct router_encoder *encoders;
    size_t encoders_count;
    const char *cache_path; /* file of vectors by text, read and written; NULL = none */
};
struct router_train_report {
    size_t rows, labels, features, head_bytes;
    double train_accuracy, val_accuracy, temperature, threshold, ece, seconds;
    size_t encoded; /* texts whose vectors were computed, not found in the cache */
};
/* Deterministic: same data and options give the same bytes, whatever the thread count. `val` may be
 * NULL: every n-th row of each label is held out for temperature and threshold (with too few
 * rows for that, the training rows serve). */
enum err_code router_train(const struct router_data *train, const struct router_data *val,
                           const struct router_train_options *opt, const struct progress *progress,
                           struct buf *ret_head, struct router_train_report *report,
                           struct err *e) BASE_NODISCARD;

/* ---- experts added by example ------------------------------------------------------------------
 */

/* Experts that the head has no label for, known by a description and a few prompts: a prompt goes
 * to one of them when it is closer to its examples than to the head's sample of everything else.
 * Immutable after the last add. */
struct router_prototypes;
struct router_prototypes *router_prototypes_open(const struct router_head *h);
void router_prototypes_close(struct router_prototypes **p);
/* `texts`: examples, and the description if there is one. ERR_UNSUPPORTED if the head has no
 * encoder stage of this encoder. *ret_idx is what router_decision.prototype_idx names. */
enum err_code router_prototypes_add(struct router_prototypes *p, const char *name,
                                    const struct router_encoder *encoder,
                                    const struct router_turn *texts, size_t count, int *ret_idx,
                                    struct err *e) BASE_NODISCARD;
size_t router_prototypes_count(const struct router_prototypes *p);
const char *router_prototypes_name(const struct router_prototypes *p, size_t idx);

struct router_eval_report {
    size_t n, labels;
    double accuracy, macro_f1, ece, abstained, coverage;
    double latency_us_p50, latency_us_p99;
    double expert_to_general, expert_to_other,
        general_to_expert; /* shares, see router-baselines.md */
    double
        *per_label; /* [labels + 1] accuracy by true label (NAN if absent), last: unknown label */
    uint32_t *confusion;               /* [labels x labels], row = truth */
    double answered_by[ROUTER_STAGES]; /* share of prompts whose last asked stage it was */
    double coverage_curve[21]; /* accuracy of the most confident 100, 95, ... 0 % ([20] = NAN) */
};
/* Rows labelled "any" count for latency only. Abstention counts as an answer "general". */
enum err_code router_eval(const struct router_head *h, const struct router_data *data,
                          const struct router_options *opt, struct router_eval_report *ret,
                          struct err *e) BASE_NODISCARD;
void router_eval_report_done(struct router_eval_report *r);

/* ==== The choice
 * ================================================================================== Who gets the
 * prompt when several could, by what it costs to ask them. Pure: residency and queues arrive as
 * numbers, nobody is called. */

#define ROUTER_CANDIDATES_MAX 256
#define ROUTER_POLICY_DEFAULT "score - lambda * (load_s + queue_s + prefill_s)"

/* One expert that may answer. Seconds are host time that the request would wait. */
struct router_candidate {
    float score;             /* probability of its label */
    float load_s;            /* until its weights are in hbm */
    float queue_s;           /* until it runs */
    float prefill_s;         /* to run again what another expert has run of this conversation */
    float bytes;             /* that would be loaded */
    int32_t resident, plain; /* all of it is in hbm; what the scores alone choose */
};

struct router_policy;
struct router_policy_options {
    const char
        *expr; /* NULL or "" = ROUTER_POLICY_DEFAULT; fields as above, and lambda, margin, best */
    double lambda; /* >= 0 */
    double margin; /* [0, 1]: only candidates this close to the best score are compared */
};
/* ERR_INVALID says line and column of what is wrong with the expression. */
enum err_code router_policy_open(const struct router_policy_options *opt,
                                 struct router_policy **ret, struct err *e) BASE_NODISCARD;
void router_policy_close(struct router_policy **p);
/* Without costs and with the expression of the house nothing but the scores counts. */
bool router_policy_is_plain(const struct router_policy *p);
/* Index of the winner; of equal utilities the plain one, else the first. `plain_idx` is what the
 * scores alone choose and always takes part. ret_utility [count] may be NULL; -inf outside the
 * margin. Any thread. */
size_t router_choose(const struct router_policy *p, const struct router_candidate *c, size_t count,
                     size_t plain_idx, float *ret_utility);

/* ==== Rules
 * ======================================================================================= What the
 * operator knows better than any score. Rules are asked in order before the scores; the first that
 * matches and pins decides, those that forbid add up. */

/* Every condition that is set must hold; none set = always. Strings are borrowed until rules_add
 * returns. */
struct router_rule {
    const char *regex;           /* PCRE2, UTF-8, searched in the last user turn */
    const char *const *keywords; /* any of them, as whole words, letters of any case */
    size_t keywords_count;
    int has_tools, json_wanted; /* 1, 0, or -1 = either */
    const char *script; /* most letters of the turn are "latin", "cyrillic", "arabic", "han"... */
    size_t chars_min, chars_max; /* bytes of the turn; 0 = no limit */
    const char *api_key;         /* exactly */
    const char *header;          /* "name" or "name: value" */
    int pin;                     /* expert index, -1 = none */
    const int *forbid;           /* expert indices */
    size_t forbid_count;
};
struct router_rules;
struct router_rules *router_rules_open(void);
void router_rules_close(struct router_rules **r);
/* ERR_INVALID with position and cause for a regex that does not compile. */
enum err_code router_rules_add(struct router_rules *r, const struct router_rule *rule,
                               struct err *e) BASE_NODISCARD;

struct router_rule_input {
    struct router_turn turn; /* the last user turn */
    bool has_tools, json_wanted;
    const char *api_key;                                /* NULL = none */
    const char *(*header)(void *ctx, const char *name); /* NULL = no headers */
    void *header_ctx;
};
/* forbidden [experts] gets true where a rule forbids. Returns the pinned expert, -1 = none; a rule
 * that pins an expert which an earlier one forbids is passed over. Time is linear in the turn, of
 * which the first 16 KiB are read, and the regex's work is limited. Any thread. */
int router_rules_apply(const struct router_rules *r, const struct router_rule_input *in,
                       bool *forbidden, size_t experts);

#endif
