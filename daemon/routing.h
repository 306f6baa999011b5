/* What the server has for routing beside the head: the encoder, experts added by example, rules,
 * the price of a switch, which expert a conversation is with, and the log of decisions. Private to
 * daemon/. */
#ifndef SWITCHYARD_DAEMON_ROUTING_H
#define SWITCHYARD_DAEMON_ROUTING_H

#include "daemon/route_encoder.h"
#include "daemon/server.h"
#include "router/router.h"

/* Opens s->head, s->routing and the label tables. A head or an encoder that is missing or damaged
 * is no error: the stage is left out and routing_trouble says why. Rules and policy that make no
 * sense are. */
enum err_code routing_open(struct server *s, struct err *e) BASE_NODISCARD;
void routing_close(struct server *s);
/* One line each of what was left out; "" = nothing. */
const char *routing_trouble(const struct server *s);
/* NULL = no encoder. */
struct route_encoder *routing_encoder(const struct server *s);

/* What a decision is made from. */
struct routing_query {
    const struct router_turn *turns; /* user turns, oldest first */
    size_t turns_count;
    bool tool_pending; /* the newest message answers a tool call: the expert that called gets it */
    bool has_tools, json_wanted;
    const char *key, *user, *conversation; /* NULL = none */
    const char *(*header)(void *ctx, const char *name);
    void *header_ctx;
    const char *id; /* of the request, for the log */
};
struct routing_result {
    struct expert *expert;
    enum router_reason reason;
    double confidence;
    struct router_decision decision;
    bool priced, switched; /* the price was asked; it changed the choice */
    bool known;            /* the conversation was seen before */
    size_t candidates_count;
    struct routing_candidate {
        struct expert *expert;
        struct router_candidate price;
        float utility;
    } candidates[ROUTER_CANDIDATES_MAX];
};
/* Never fails. `scratch` may be NULL (no head). Any thread. */
void routing_decide(struct server *s, struct router_scratch *scratch, const struct routing_query *q,
                    struct routing_result *ret);
/* The decision as a JSON object: the answer of POST /v1/route and a line of the log. */
void routing_put(const struct server *s, const struct routing_query *q,
                 const struct routing_result *r, struct buf *out);

#endif
