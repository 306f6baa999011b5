/* router.rules: a JSON file of rules, by the names of this server's experts. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_ROUTING_RULES_H
#define SWITCHYARD_DAEMON_ROUTING_RULES_H

#include "daemon/server.h"
#include "router/router.h"

/* [{"regex", "keywords", "has_tools", "json_wanted", "language", "chars_min", "chars_max",
 * "api_key", "header", "pin", "forbid"}]; path "" = no rules (*ret NULL). Errors name file, rule
 * and key. */
enum err_code routing_rules_open(struct server *s, const char *path, struct router_rules **ret,
                                 struct err *e) BASE_NODISCARD;

#endif
