"""Classification by reconstruction: the class whose model explains an image best."""
