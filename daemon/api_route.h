/* What a call asks the router. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_API_ROUTE_H
#define SWITCHYARD_DAEMON_API_ROUTE_H

#include "daemon/api.h"
#include "daemon/routing.h"

#define API_ROUTE_TURNS_MAX                                                                        \
    64 /* user turns that are read, newest last; the router bounds their bytes */

/* Pointers into the call; `turns` [API_ROUTE_TURNS_MAX] is filled. */
void api_route_query(const struct api_call *c, struct router_turn *turns,
                     struct routing_query *ret);
/* POST /v1/route: what the router would do with a chat or completion body, and why. Nothing runs.
 */
enum err_code api_put_route(struct server *s, const char *body, size_t len,
                            const struct api_call *from, struct router_scratch *scratch,
                            struct buf *out, struct err *e) BASE_NODISCARD;

#endif
