/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NT_LINUX_LOG2_H
#define NT_LINUX_LOG2_H

/* Included by bcc's helpers.h, which brings its own logarithm. */

#endif
