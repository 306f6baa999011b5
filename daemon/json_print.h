/* One JSON value as a line of stdout; takes the reference over. Private to daemon/'s commands. */
#ifndef SWITCHYARD_DAEMON_JSON_PRINT_H
#define SWITCHYARD_DAEMON_JSON_PRINT_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static inline void json_print_line(json_t *j)
{
    char *text = json_dumps(j, JSON_COMPACT);
    puts(text);
    free(text);
    json_decref(j);
}

#endif
