/* One generation call of the API: from body bytes to requests, and from their output to answer
 * bytes. Knows JSON and experts, knows nothing of HTTP connections, and so is tested without any.
 *
 * struct api_call belongs to one thread at a time: the HTTP thread that opened it, or, after a
 * client went away, the stream thread that waits for the engine to let go. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_API_H
#define SWITCHYARD_DAEMON_API_H

#include <jansson.h>

#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/tool_parse.h"

#define API_STOPS_MAX 4
#define API_CHOICES_MAX 16
#define API_PROMPTS_MAX 32 /* prompts in one /v1/completions body */
#define API_ANSWERS_MAX 64 /* prompts times choices: each reserves room for its tokens */
#define API_TOKENS_UNSET (-1)

enum api_kind { API_CHAT, API_COMPLETION };

/* ---- what the client asked for beside the prompt ----------------------------------------- */

/* What the answer must be, as the client said it. */
enum api_form_kind { API_FORM_ANY, API_FORM_OBJECT, API_FORM_SCHEMA, API_FORM_GBNF };
struct api_form {
    enum api_form_kind kind;
    const json_t *schema; /* API_FORM_SCHEMA; of the document */
    const char *param;    /* the field it came from */
};

/* Reals are NAN and integers negative where the client said nothing; strings are into the document.
 */
struct api_options {
    const char *model;
    double temperature, top_p, min_p, typical_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    int64_t top_k, max_tokens, min_tokens, seed;
    bool seed_given, ignore_eos, cache_prompt;
    int64_t n;
    bool stream, include_usage, echo;
    bool want_logprobs;
    int64_t top_logprobs;
    const char *stops[API_STOPS_MAX];
    size_t stops_count;
    struct logit_bias *bias; /* owned */
    size_t bias_count;
    bool want_account, want_timings;
    struct api_form form;
    struct grammar *grammar; /* a reference; NULL = the answer may be anything */
};
enum err_code api_options_parse(const json_t *root, enum api_kind kind, struct api_options *ret,
                                struct err *e) BASE_NODISCARD;
void api_options_done(struct api_options *o);

/* api_grammar.c: response_format, grammar, json_schema; *ret must be NULL and stays so for none. */
enum err_code api_grammar_parse(const json_t *root, struct api_form *ret_form, struct grammar **ret,
                                struct err *e) BASE_NODISCARD;

/* ---- messages ------------------------------------------------------------------------------ */

/* The conversation as templates want it: role names known, content always a string. */
struct api_messages {
    json_t *messages;  /* array, owned */
    json_t *variables; /* object of further template variables, owned; NULL = none */
    bool has_system;
};
enum err_code api_messages_parse(const json_t *root, struct api_messages *ret,
                                 struct err *e) BASE_NODISCARD;
void api_messages_done(struct api_messages *m);

/* ---- functions that the model may call: api_tools.c ---------------------------------------------- */

#define API_TOOL_ID_BYTES 32

enum api_tool_choice { API_TOOLS_NONE, API_TOOLS_AUTO, API_TOOLS_REQUIRED };
struct api_tools {
    json_t *list; /* of the request, nothing left out that templates ask for; owned; NULL = none in use */
    enum api_tool_choice choice;
    const char *named; /* the only one that can be called; of list */
    size_t named_idx;
    bool parallel;
    /* After api_tools_prepare. */
    const struct tool_format *format; /* the expert's */
    enum grammar_tools_start start;
    bool constrained;
    uint32_t calls_max;
};
struct api_call;
enum err_code api_tools_parse(const json_t *root, struct api_tools *ret,
                              struct err *e) BASE_NODISCARD;
void api_tools_done(struct api_tools *t);
/* The expert is known: compiles the grammar of its calls, in place of options.grammar. */
enum err_code api_tools_prepare(struct api_call *c, struct err *e) BASE_NODISCARD;
/* What must stand behind the rendered prompt. */
void api_tools_put_prefill(const struct api_call *c, struct buf *out);
struct tool_parse *api_tools_open_parse(const struct api_call *c);
void api_tools_new_id(const struct api_call *c, char ret[API_TOOL_ID_BYTES]);

/* ---- the call -------------------------------------------------------------------------------- */

struct api_cursor {
    uint32_t events_read;
    uint32_t text_chars; /* code points given out: text_offset of /v1/completions */
    bool opened, finish_sent;
    struct tool_parse *parse; /* owned; NULL = no functions, or nothing read yet */
    uint32_t calls;           /* begun */
    enum request_finish finish;
};

struct api_call {
    struct server *server;
    enum api_kind kind;
    json_t *root; /* the document */
    struct api_options options;
    struct api_messages messages; /* API_CHAT */
    struct api_tools tools;       /* API_CHAT */

    const char *key; /* the API key it came with; of the connection, NULL = none */
    const char *(*header)(void *ctx, const char *name); /* of the connection; NULL = none */
    void *header_ctx;
    struct expert *expert;
    enum router_reason reason;
    enum router_stage route_stage;
    uint64_t stage_ns[ROUTER_STAGES];
    bool switch_avoided; /* the price of a switch changed the choice */
    double confidence;
    size_t body_bytes;
    uint64_t conversation; /* tells it from others by its first words; 0 = none */
    uint64_t received_ns, route_ns;
    uint64_t created_s;
    char id[48];

    struct request *requests[API_PROMPTS_MAX];
    size_t requests_count;

    struct api_cursor cursor[API_PROMPTS_MAX][API_CHOICES_MAX];
    struct buf head;       /* the fields every chunk starts with */
    bool failed;           /* an error event was written */
    atomic_uint given;     /* requests the engine has got; the stream thread reads it */
    atomic_bool submitted; /* api_call_submit is over, well or not */
};

/* Parse a body; nothing is looked up yet. */
enum err_code api_call_open(struct server *s, enum api_kind kind, const char *body, size_t len,
                            struct api_call **ret, struct err *e) BASE_NODISCARD;
/* Choose the expert, render, tokenise, check the context: the requests are ready to submit.
 * `scratch` may be NULL if the server has no head. */
enum err_code api_call_prepare(struct api_call *c, struct router_scratch *scratch,
                               struct err *e) BASE_NODISCARD;
/* Give all requests to the engine. On failure those already given are cancelled, and the call may
 * be closed once api_call_idle says so. `notify` and `owner` as in struct request. */
enum err_code api_call_submit(struct api_call *c, void (*notify)(struct request *r), void *owner,
                              uint32_t *ret_retry_after_s, struct err *e) BASE_NODISCARD;
/* These four: any thread that keeps the call from being closed. */
void api_call_cancel(struct api_call *c);
bool api_call_done(const struct api_call *c); /* submitted, and every request given is DONE */
bool api_call_idle(const struct api_call *c); /* the engine has none of its requests */
/* The farthest of the requests' states, and the progress of its load. */
enum request_state api_call_state(const struct api_call *c, uint32_t *ret_load_permille);
void api_call_close(struct api_call **c);

/* The whole answer, after api_call_done; an error if generation failed. */
enum err_code api_call_render(struct api_call *c, struct buf *out, struct err *e) BASE_NODISCARD;
/* Server-sent events for what is new, [DONE] included; true = nothing more will come. */
bool api_call_render_events(struct api_call *c, struct buf *out);
/* What happened to the call after api_call_done: the error of the first choice that failed. */
enum err_code api_call_outcome(const struct api_call *c, struct err *e);

/* ---- parts that have a file of their own ---------------------------------------------------- */

/* api_route.c: the expert for options.model; asks the router for `auto`. */
enum err_code api_choose_expert(struct api_call *c, struct router_scratch *scratch,
                                struct err *e) BASE_NODISCARD;
/* `key` NULL = the client sent none. */
bool api_key_may_use(const struct server *s, const struct expert *ex, const char *key);
enum err_code api_check_key(const struct server *s, const struct expert *ex, const char *key,
                            struct err *e) BASE_NODISCARD; /* ERR_PERMISSION */
/* api_prompt.c: tokens of the conversation / of one text / of the prompts of a completion body. */
enum err_code api_chat_tokens(struct api_call *c, struct token_list *ret,
                              struct err *e) BASE_NODISCARD;
/* The rendered conversation as it is read by people: /apply-template. */
enum err_code api_chat_text(struct api_call *c, struct buf *ret, struct err *e) BASE_NODISCARD;
void api_push_token(struct token_list *l, int32_t id);
size_t api_prompts(const json_t *root, struct err *e); /* 0 = bad, e says why */
/* The text of a prompt; NULL if it was given as tokens. */
const json_t *api_prompt_text(const struct api_call *c, size_t prompt_idx);
enum err_code api_completion_tokens(struct api_call *c, size_t prompt_idx, struct token_list *ret,
                                    struct err *e) BASE_NODISCARD;
/* Sums over the requests of a finished call. */
struct api_usage {
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
};
void api_call_usage(const struct api_call *c, struct api_usage *ret);
/* `"expert":"x","reason":...` without braces: the account of a call; what the engine fills in is
 * left out before api_call_done. */
void api_put_account(const struct api_call *c, struct buf *out);

/* ---- answers that may hold calls: api_message.c -------------------------------------------------- */

/* The value of "message"; true if it has calls. */
bool api_put_tool_message(const struct api_call *c, const struct request_choice *choice,
                          struct buf *out);
/* The deltas that an event leads to, each by one call of `put`. */
typedef void api_put_delta(void *ctx, const struct buf *delta);
void api_put_tool_deltas(const struct api_call *c, struct api_cursor *cursor,
                         const struct request_event *ev, api_put_delta *put, void *ctx);
/* Unguessable, different each time. */
uint64_t api_fresh_bits(void);

/* ---- log-probabilities: api_logprobs.c ------------------------------------------------------- */

/* What a `logprobs` field is about: events, and before them the prompt's tokens where they are echoed. */
struct api_scored {
    const struct request *prompt; /* NULL = the answer's tokens only */
    size_t prompt_idx;
    uint32_t chars; /* code points shown before the events: the echo, or the stream so far */
    const struct request_event *events;
    uint32_t count;
};
/* The value of the field; only where the client asked for it. */
void api_put_logprobs(const struct api_call *c, const struct api_scored *s, struct buf *out);
/* The token that ended the answer is not part of its text and has no entry. */
bool api_has_logprob(const struct api_call *c, const struct request_event *ev);
uint32_t api_count_chars(const char *utf8, size_t len); /* code points */
/* The prompt as `echo` shows it: the client's own text, or what its tokens say. */
void api_echo_text(const struct api_call *c, size_t prompt_idx, struct buf *ret);

/* ---- texts and tokens: api_text.c ------------------------------------------------------------- */

enum api_text { API_TEXT_TOKENIZE, API_TEXT_DETOKENIZE, API_TEXT_TEMPLATE };
/* The answer to a body of /tokenize, /detokenize or /apply-template, for the holder of `key`. */
enum err_code api_answer_text(struct server *s, enum api_text what, const char *key, const char *body,
                              size_t len, struct buf *out, struct err *e) BASE_NODISCARD;

/* ---- small answers -------------------------------------------------------------------------- */

/* {"error":{...}}; type and code follow from the code, status too. */
void api_put_error(struct buf *out, const struct err *e);
const char *api_error_type(enum err_code code);
void api_put_models(struct server *s, struct buf *out);
enum err_code api_put_model(struct server *s, const char *id, struct buf *out,
                            struct err *e) BASE_NODISCARD;

#endif
